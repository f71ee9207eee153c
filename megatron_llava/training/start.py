"""Where a run starts from, read from disk before anything is set up (no Megatron-core here)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_llava.config.model_yaml import MODEL_GROUPS, fill_model_from, fill_named_model
from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.yaml_file import field_values, read_yaml_mapping
from megatron_llava.convert.hf_start import hf_model_fields
from megatron_llava.parallel.adapter_record import (
    AdapterRecord,
    check_base,
    digest_of,
    read_adapter_record,
    refuse_adapters,
)
from megatron_llava.parallel.checkpoint_directory import (
    HF,
    MODEL_YAML,
    TRACKER,
    CheckpointError,
    Iteration,
    find_checkpoint,
    latest_iteration,
)

_LAYERS, _FRAMES = "temporal_encoder_layers", "temporal_encoder_max_frames"


def starting_checkpoint(config: RunConfig) -> tuple[str, Iteration] | None:
    """The root and iteration that a run reads at its start; None for random weights.

    ``--load`` comes first. Where it holds no checkpoint yet, ``--pretrained-checkpoint`` or
    ``--load-hf`` is read, so the same command starts a run and resumes it.

    Raises:
        CheckpointError: a checkpoint that was asked for does not exist.
    """
    checkpoint = config.checkpoint
    if checkpoint.load is not None:
        iteration: Iteration | None = checkpoint.ckpt_step
        if iteration is None:
            iteration = latest_iteration(checkpoint.load)
        elif find_checkpoint(checkpoint.load, iteration) is None:
            raise CheckpointError(
                f"--ckpt-step {iteration}: {checkpoint.load} has no checkpoint of that step"
            )
        if iteration is not None:
            return checkpoint.load, iteration
        if checkpoint.exit_on_missing_checkpoint:
            raise CheckpointError(
                f"--load {checkpoint.load} holds no checkpoint, which --exit-on-missing-checkpoint "
                "forbids"
            )
    if checkpoint.load_hf is not None:
        if latest_iteration(checkpoint.load_hf) is not None:
            raise CheckpointError(
                f"--load-hf {checkpoint.load_hf} holds checkpoints of Megatron-core: name it with "
                "--pretrained-checkpoint"
            )
        return checkpoint.load_hf, HF
    if checkpoint.pretrained_checkpoint is not None:
        iteration = latest_iteration(checkpoint.pretrained_checkpoint)
        if iteration is None:
            raise CheckpointError(
                f"--pretrained-checkpoint {checkpoint.pretrained_checkpoint} holds no checkpoint; "
                "a Hugging Face folder is read with --load-hf, or converted with "
                "tools/convert_checkpoint.py --from hf --to megatron"
            )
        return checkpoint.pretrained_checkpoint, iteration
    return None


def adapted_checkpoint(config: RunConfig) -> tuple[str, Iteration] | None:
    """The root and iteration of the frozen weights beside which a run trains adapters, if any."""
    folder, root = config.checkpoint.load_hf, config.checkpoint.pretrained_checkpoint
    if not config.lora.adapts:
        return None
    if folder is not None:
        return folder, HF
    iteration = None if root is None else latest_iteration(root)
    return None if root is None or iteration is None else (root, iteration)


def adapter_record(config: RunConfig) -> AdapterRecord | None:
    """What is written beside the checkpoints of a run with adapters."""
    base = adapted_checkpoint(config)
    return None if base is None else AdapterRecord.of(config.lora, digest_of(base[0]))


def check_adapters(config: RunConfig) -> None:
    """Find checkpoints of adapters where whole models are wanted, and the reverse.

    Raises:
        CheckpointError: one line that says what the folder holds and what to do.
    """
    checkpoint, lora = config.checkpoint, config.lora
    if checkpoint.pretrained_checkpoint is not None:
        refuse_adapters(checkpoint.pretrained_checkpoint)
    if checkpoint.save is not None and (Path(checkpoint.save) / TRACKER).is_file():
        has_adapters = read_adapter_record(checkpoint.save) is not None
        if has_adapters != lora.adapts:
            kinds = ("adapters", "whole models")
            found, made = kinds if has_adapters else reversed(kinds)
            raise CheckpointError(
                f"--save {checkpoint.save} holds {found}, and the run would save {made}: name "
                "another folder"
            )
    root = checkpoint.load
    if root is None or latest_iteration(root) is None:
        return
    record = read_adapter_record(root)
    if record is None:
        if lora.adapts:
            raise CheckpointError(
                f"--load {root} holds a whole model, not adapters: name it with "
                "--pretrained-checkpoint, and with --load the folder of the adapters"
            )
        return
    if not lora.adapts:
        raise CheckpointError(
            f"--load {root} holds adapters: give {record.flags}, or make a whole model with "
            "tools/lora.py merge"
        )
    assert checkpoint.starting_flag is not None, "a rule"
    base = checkpoint.starting_flag[1]
    now = AdapterRecord.of(lora, record.base)
    same_targets = set(now.target_modules) == set(record.target_modules)
    if (now.rank, now.alpha) != (record.rank, record.alpha) or not same_targets:
        raise CheckpointError(
            f"--load {root} holds adapters of {record.flags}, and the run has {now.flags}: give "
            "the former"
        )
    check_base(root, record, base)


def check_outputs(config: RunConfig) -> None:
    """Find what cannot be written now, not at the first save or when the ranks have met.

    Raises:
        ValueError: a folder or file that a flag names cannot be made or written, or holds what
            the run would write over.
    """
    _check_nothing_is_replaced(config)
    log_file, profiling = config.logging.log_file, config.profiling
    snapshot = profiling.memory_snapshot_path if profiling.record_memory_history else None
    if log_file is not None and Path(log_file).is_dir():
        raise ValueError(f"--log-file {log_file} is a folder: name a file in it")
    for option, path, folder in (
        ("--save", config.checkpoint.save, config.checkpoint.save),
        ("--log-file", log_file, log_file and Path(log_file).absolute().parent),
        ("--tensorboard-dir", config.logging.tensorboard_dir, config.logging.tensorboard_dir),
        ("--wandb-save-dir", config.logging.wandb_save_dir, config.logging.wandb_save_dir),
        ("--memory-snapshot-path", snapshot, snapshot and Path(snapshot).absolute().parent),
    ):
        if folder is None:
            continue
        existing = Path(folder).absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(f"{option} {path}: {existing} is not a folder that can be written to")


def _check_nothing_is_replaced(config: RunConfig) -> None:
    """A run that forgot to resume would count from 0 and write over its own checkpoints."""
    save, load = config.checkpoint.save, config.checkpoint.load
    found = None if save is None or load is not None else latest_iteration(save)
    if isinstance(found, int):
        raise ValueError(
            f"--save {save} holds checkpoints up to step {found}, which a run from step 0 would "
            f"replace: add --load {save} to go on from there, or name another folder"
        )


def how_to_go_on(config: RunConfig) -> str:
    """What to do after a run that ended too early."""
    checkpoint = config.checkpoint
    if checkpoint.save is None:
        return "nothing was saved, for --save is not given: start again"
    if checkpoint.save == checkpoint.load and not checkpoint.finetune:
        return f"run the same command again to go on from the last checkpoint in {checkpoint.load}"
    return f"go on from the last checkpoint with --load {checkpoint.save}"


def resumes(config: RunConfig, start: tuple[str, Iteration] | None) -> bool:
    """Whether the run goes on with the step, optimizer and data position of ``start``."""
    if start is None or start[0] != config.checkpoint.load or config.checkpoint.finetune:
        return False
    return isinstance(start[1], int)


def architecture_from_checkpoint(config: RunConfig) -> RunConfig:
    """Take the model's fields from ``--model`` and the starting checkpoint.

    They are in its ``model.yaml``, or follow from a Hugging Face folder's configuration.

    Raises:
        ValueError: a flag or the named model contradicts the weights, there is no such model, or
            the file cannot be read.
    """
    if config.checkpoint.model is not None:
        config = fill_named_model(config, config.checkpoint.model)
    start = starting_checkpoint(config)
    if start is None:
        return config
    if start[1] == HF:
        return fill_model_from(config, *hf_model_fields(start[0]))
    path = Path(start[0]) / MODEL_YAML
    mapping = read_yaml_mapping(str(path))
    filled = fill_model_from(config, mapping, str(path))
    if resumes(config, start):
        _check_additions(filled, field_values(mapping, str(path), MODEL_GROUPS), path)
    return filled


def _check_additions(config: RunConfig, before: dict[str, Any], path: Path) -> None:
    """A resumed run goes on with the parameters that it has trained, and with no others."""
    for name in ("cross_image_attention", _LAYERS, _FRAMES):
        spec = all_fields()[name]
        then, now = before.get(name, spec.default), config.get(name)
        if then != now and (name != _FRAMES or config.get(_LAYERS)):
            raise ValueError(
                f"{spec.option} is {now}, and {path} says {then}: a resumed run goes on with the "
                "parameters that it has; drop the flag, or start over from the weights with "
                "--finetune"
            )
