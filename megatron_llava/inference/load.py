"""A checkpoint as a model that answers, in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import dist_checkpointing

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.model_yaml import fill_model_from
from megatron_llava.config.rules_model import check_divisible, check_language, known
from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import PARTS_WITH_ADAPTERS, part_of
from megatron_llava.config.yaml_file import read_yaml_mapping
from megatron_llava.inference.execution import Execution
from megatron_llava.models.build import build_llava_model
from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.adapter_record import check_base, read_record, refuse_adapters
from megatron_llava.parallel.checkpoint_directory import (
    HF,
    MODEL_YAML,
    CheckpointError,
    Iteration,
    find_checkpoint,
    is_hf_folder,
    latest_iteration,
)
from megatron_llava.parallel.groups import set_seed
from megatron_llava.peft.four_bit_linears import quantize_base
from megatron_llava.platform.device import compiled
from megatron_llava.training.checkpointing import load_weights
from megatron_llava.training.freeze import freeze_parts
from megatron_llava.training.whole_weights import load_whole_weights
from megatron_llava.vision.settings import image_settings


def inference_config(
    root: str,
    *,
    device: str,
    bf16: bool = False,
    base: str | None = None,
    execution: Execution | None = None,
    tensor_parallel: int = 1,
) -> RunConfig:
    """The settings by which a model that answers is built; nothing has been started.

    A tower that does not divide among the ranks is whole on each of them.

    Args:
        base: the weights that the adapters in ``root`` stand beside, a root or a Hugging Face
            folder; None for a whole model.
        execution: where it computes and with what; None for all of it on ``device``.
        tensor_parallel: ranks that share the weights.

    Raises:
        ValueError: one line naming what does not fit together.
    """
    path = str(Path(root) / MODEL_YAML)
    given = {"device": device, "bf16": bf16, "tensor_model_parallel_size": tensor_parallel}
    config = RunConfig().with_values(given, "default")
    if base is None:
        refuse_adapters(root)
    else:
        record = read_record(root)
        check_base(root, record, base)
        config = replace(config, lora=record.lora)
    config = fill_model_from(config, read_yaml_mapping(path), path)
    config = replace(config, lora=(execution or Execution()).held(config.lora))
    vision = config.vision
    sizes = (known(vision.vision_num_attention_heads), known(vision.vision_ffn_hidden_size))
    if vision.kind.hf is not None or any(size % tensor_parallel for size in sizes):
        config = config.with_values({"vision_parallel": "data"}, "default")
    check_language(config)
    hidden = known(config.language.hidden_size)
    check_divisible("--hidden-size", hidden, "--tensor-model-parallel-size", tensor_parallel)
    return config


def load_model(
    root: str,
    config: RunConfig,
    *,
    iteration: int | None,
    device: torch.device,
    base: str | None = None,
    execution: Execution | None = None,
) -> tuple[LlavaModel, ImageSettings]:
    """Build a model, or this rank's share of it, and load a checkpoint of any layout.

    Core's process groups must exist.

    Args:
        root: folder that --save named, or that the converter wrote.
        config: what ``inference_config`` made of it.
        iteration: which checkpoint; the latest where None.
        base, execution: as ``inference_config`` had them.

    Raises:
        CheckpointError: there is none, or it does not fit its ``model.yaml``.
    """
    execution = execution or Execution()
    chosen = latest_iteration(root) if iteration is None else iteration
    if chosen is None:
        raise CheckpointError(f"{root}: holds no checkpoint")
    # On CUDA core draws even weights that are loaded next, and needs a seed for it.
    set_seed(config.training.seed)
    model = build_llava_model(config)
    if base is None:
        load_weights(root, chosen, [model])
    else:
        _load_beside(base, root, chosen, config, model)
    place(model, device, torch.device("cpu") if execution.vision_on_cpu else device)
    if execution.load_in_4bit:
        model.requires_grad_(False)
        quantize_base([model], config.lora)
    if execution.torch_compile:
        model.vision_model.forward = compiled(model.vision_model.forward)
    return model.eval(), image_settings(config)


def place(model: LlavaModel, device: torch.device, vision: torch.device) -> None:
    """Put a model on ``device``, but what turns pixels into the decoder's rows on ``vision``."""
    model.to(device)
    for name, module in model.named_children():
        if part_of(f"{name}.") != "mm_language_model":
            module.to(vision)
    model.pixel_table = model.pixel_table.to(vision)


def _load_beside(
    base: str, root: str, iteration: Iteration, config: RunConfig, model: LlavaModel
) -> None:
    """Load frozen weights, and over them all that a checkpoint of adapters holds."""
    directory = find_checkpoint(root, iteration)
    if directory is None:
        raise CheckpointError(f"{root}: no checkpoint of step {iteration}")
    stored = dist_checkpointing.load_tensors_metadata(str(directory))
    tower = any(name.startswith("vision_model.") for name in stored)
    parts = [*PARTS_WITH_ADAPTERS, "mm_vision_tower"] if tower else PARTS_WITH_ADAPTERS
    # What learned decides what the checkpoint holds.
    freeze_parts(model, parts, adapts=True)
    where = HF if is_hf_folder(base) else latest_iteration(base)
    assert where is not None, "it has been compared"
    load_whole_weights(base, where, config, [model])
    load_weights(root, iteration, [model], of_adapters=True)
