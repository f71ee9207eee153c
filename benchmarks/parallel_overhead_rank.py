"""What one process of parallel_overhead.py does: run every layout in turn, timed and counted."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One layout."""

    name: str
    flags: tuple[str, ...]
    note: str
    ranks: int = 2
    copies: int = 1
    """Worlds of this many ranks that run beside each other."""

    @property
    def processes(self) -> int:
        return self.ranks * self.copies


class _Silent:
    """A reporter that tells nobody."""

    def message(self, text: str) -> None: ...

    def advance_to(self, iteration: int) -> None: ...

    def training(self, *details: Any) -> None: ...

    def validation(self, *details: Any) -> None: ...


def run_rank(
    process: int,
    cases: list[Case],
    arguments: list[str],
    packs_per_rank: int,
    steps: int,
    folder: Path,
    barrier: Any,
    queue: Any,
) -> None:
    """Run all cases and put (process, results) into the queue; None where it had no part in one.

    Args:
        arguments: flags of the model and the data.
        folder: where ranks meet.
        barrier: of all processes.
    """
    import torch
    import torch.distributed as dist

    from megatron_llava.platform.device import leave_process_group, set_up_device

    torch.set_num_threads(1)
    set_up_device("cpu")
    results: list[dict[str, Any] | None] = []
    for number, case in enumerate(cases):
        barrier.wait()
        if process >= case.processes:
            results.append(None)
            continue
        world, rank = divmod(process, case.ranks)
        meeting = dist.FileStore(str(folder / f"meeting-{number}-{world}"), case.ranks)
        os.environ["WORLD_SIZE"] = str(case.ranks)
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=case.ranks)
        own = [
            "--device=cpu",
            f"--global-batch-size={packs_per_rank * case.ranks}",
            f"--train-iters={steps + 1}",
            "--lr=1e-4",
            "--num-workers=0",
            f"--data-cache-path={folder / f'plans-{world}'}",
        ]
        try:
            results.append(_run(case, [*arguments, *own, *case.flags], steps, barrier))
        finally:
            leave_process_group()
    queue.put((process, results))


def _run(case: Case, arguments: list[str], steps: int, barrier: Any) -> dict[str, Any]:
    import torch

    from megatron_llava.config.cli import parse_args
    from megatron_llava.observe.traffic import counted_step
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups
    from megatron_llava.train import prepare
    from megatron_llava.training.run import build_trainer

    config = prepare(parse_args(arguments))
    initialize_groups(config.parallel, config.virtual_stages)
    try:
        trainer = build_trainer(config, torch.device("cpu"), _Silent())
        # The first step also allocates; it has the same collectives as the later ones.
        traffic = counted_step(trainer)
        if case.copies > 1:
            barrier.wait()
        seconds = [_timed_step(trainer) for _ in range(steps)]
        return {"seconds": seconds, **vars(traffic)}
    finally:
        destroy_groups()


def _timed_step(trainer: Any) -> float:
    from megatron_llava.training.step import train_step

    started = time.perf_counter()
    source = trainer.source
    rows = source.step_rows()
    train_step(
        trainer.wrapped,
        trainer.optimizer,
        trainer.scheduler,
        source.step(rows),
        source.num_microbatches,
        rows,
    )
    return time.perf_counter() - started
