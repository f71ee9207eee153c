"""A checkpoint as a model that answers, in one process."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.model_yaml import fill_model_from
from megatron_llava.config.run import RunConfig
from megatron_llava.config.yaml_file import read_yaml_mapping
from megatron_llava.models.build import build_llava_model
from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.adapter_record import refuse_adapters
from megatron_llava.parallel.checkpoint_directory import (
    MODEL_YAML,
    CheckpointError,
    latest_iteration,
)
from megatron_llava.parallel.groups import set_seed
from megatron_llava.training.checkpointing import load_weights
from megatron_llava.vision.settings import image_settings


def load_model(
    root: str, *, iteration: int | None, device: torch.device, bf16: bool = False
) -> tuple[LlavaModel, ImageSettings]:
    """Build the whole model on this rank and load a checkpoint of any layout.

    Core's process groups must exist.

    Args:
        root: folder that --save named, or that the converter wrote.
        iteration: which checkpoint; the latest where None.

    Raises:
        CheckpointError: there is none, or it does not fit its ``model.yaml``.
    """
    refuse_adapters(root)
    chosen = latest_iteration(root) if iteration is None else iteration
    if chosen is None:
        raise CheckpointError(f"{root}: holds no checkpoint")
    path = str(Path(root) / MODEL_YAML)
    config = RunConfig().with_values({"device": device.type, "bf16": bf16}, "default")
    config = fill_model_from(config, read_yaml_mapping(path), path)
    # On CUDA core draws even weights that are loaded next, and needs a seed for it.
    set_seed(config.training.seed)
    model = build_llava_model(config)
    load_weights(root, chosen, [model])
    return model.to(device).eval(), image_settings(config)
