"""A job that counts what a rank sends in one training step, beside what was predicted."""

from __future__ import annotations

from typing import Any


def predicted_and_counted(arguments: list[str]) -> dict[str, Any]:
    """Train two steps with a command line, counting in the second."""
    import torch
    import torch.distributed as dist
    from distributed_jobs import Recorder
    from megatron.core import parallel_state

    from megatron_llava.config.cli import parse_args
    from megatron_llava.observe.collective_counter import CollectiveCounter, payload_by_kind
    from megatron_llava.observe.communication import communication, microbatch_sizes
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups
    from megatron_llava.train import prepare
    from megatron_llava.training.run import build_trainer
    from megatron_llava.training.step import train_step

    config = prepare(parse_args(arguments))
    initialize_groups(config.parallel, config.virtual_stages)
    try:
        trainer = build_trainer(config, torch.device("cpu"), Recorder())
        source, sizes = trainer.source, []

        def seen(batches):
            for batch in batches:
                patches = source.settings.tokens_per_view
                sizes.append(microbatch_sizes(batch, source.share.view_rank, patches))
                yield batch

        for _ in range(2):
            sizes.clear()
            rows = source.step_rows()
            with CollectiveCounter() as counter:
                train_step(
                    trainer.wrapped,
                    trainer.optimizer,
                    trainer.scheduler,
                    seen(source.step(rows)),
                    source.num_microbatches,
                    rows,
                )
        counted, small = payload_by_kind(counter)
        predicted = communication(
            trainer.config,
            dist.get_world_size(),
            sizes,
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        )
    finally:
        destroy_groups()
    return {"predicted": predicted, "counted": counted, "small": small}
