"""A job that counts what a rank sends in one training step, beside what was predicted."""

from __future__ import annotations

from typing import Any


def predicted_and_counted(arguments: list[str]) -> dict[str, Any]:
    """Train two steps with a command line; of the second, what was sent."""
    import torch
    from distributed_jobs import Recorder

    from megatron_llava.config.cli import parse_args
    from megatron_llava.observe.traffic import counted_step
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups
    from megatron_llava.train import prepare
    from megatron_llava.training.run import build_trainer

    config = prepare(parse_args(arguments))
    initialize_groups(config.parallel, config.virtual_stages)
    try:
        trainer = build_trainer(config, torch.device("cpu"), Recorder())
        counted_step(trainer)
        return vars(counted_step(trainer))
    finally:
        destroy_groups()
