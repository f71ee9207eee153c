"""Jobs about checkpoints that tests send to the pool; see distributed_jobs.py."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from distributed_jobs import Recorder


def make_trainer(arguments: list[str], recorder: Recorder) -> Any:
    """A trainer as a command line asks for it, in core's process groups."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.parallel.groups import initialize_groups
    from megatron_llava.train import prepare
    from megatron_llava.training.run import build_trainer

    config = prepare(parse_args([*arguments, "--log-interval", "1"]))
    initialize_groups(config.parallel, config.virtual_stages)
    return build_trainer(config, torch.device("cpu"), recorder)


def save_for_comparison(trainer: Any, root: Path) -> None:
    """Write the whole state in the format that no layout shapes: a tensor for each parameter."""
    config = trainer.config
    checkpoint = replace(
        config.checkpoint,
        save=str(root),
        async_save=False,
        dist_ckpt_optim_fully_reshardable=True,
    )
    trainer.saves.config = replace(config, checkpoint=checkpoint)
    trainer.save()
    trainer.saves.config = config


def hop(arguments: list[str], loaded: Path, trained: Path) -> dict[str, Any]:
    """Start or resume, train on to the next ``--exit-interval`` and save as the arguments say.

    Args:
        loaded: where to write the state before the first step, for comparison.
        trained: where to write the state after the last one.

    Returns:
        What the recorder holds, and under "packs" this rank's packs of all steps: number, samples.
    """
    from megatron_llava.parallel.groups import destroy_groups

    recorder, packs = Recorder(), []
    try:
        trainer = make_trainer(arguments, recorder)
        schedule = trainer.source.schedule
        read = schedule.pack

        def followed(index: int) -> Any:
            samples = read(index)
            packs.append((index, samples.tolist()))
            return samples

        schedule.pack = followed
        save_for_comparison(trainer, loaded)
        trainer.saved_at = trainer.iteration
        trainer.run()
        save_for_comparison(trainer, trained)
    finally:
        destroy_groups()
    return {**vars(recorder), "packs": packs}


def differences(one: Path, other: Path) -> list[str]:
    """Names of the tensors of two checkpoints that are not equal in every bit, and their steps.

    Vocabularies are padded to a multiple of the tensor-parallel ranks: rows that only one of the
    two has must be zero.
    """
    from megatron.core import dist_checkpointing

    first, second = _tensors(one), _tensors(other)
    different = sorted(set(first) ^ set(second))
    for name in sorted(set(first) & set(second)):
        shorter, longer = sorted((first[name], second[name]), key=len)
        more = longer.new_zeros(len(longer) - len(shorter), *longer.shape[1:])
        if shorter.dtype != longer.dtype or not torch.equal(torch.cat([shorter, more]), longer):
            different.append(name)
    steps = [_steps(dist_checkpointing.load_common_state_dict(str(r))) for r in (one, other)]
    return different + ([] if steps[0] == steps[1] else [f"steps {steps}"])


def content(root: Path) -> dict[str, Any]:
    """Names of a checkpoint's tensors with their shapes and largest values, and its step counts."""
    from megatron.core import dist_checkpointing

    common = dist_checkpointing.load_common_state_dict(str(root))
    sizes = {
        name: (tuple(tensor.shape), float(tensor.float().abs().max()))
        for name, tensor in _tensors(root).items()
    }
    return {"tensors": sizes, "steps": _steps(common), "layout": common["layout"]}


def _tensors(root: Path) -> dict[str, torch.Tensor]:
    from megatron.core import dist_checkpointing

    loaded = dist_checkpointing.load_plain_tensors(str(root))
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def _steps(value: Any, name: str = "") -> set[float]:
    """Every number that is called a step count somewhere in a nested structure."""
    if isinstance(value, dict):
        return set().union(*(_steps(item, str(key)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return set().union(*(_steps(item, name) for item in value))
    return {float(value)} if name in ("step", "common_step") else set()


@contextmanager
def slow_disk(until: Callable[[], bool]) -> Iterator[None]:
    """Have the processes that write for this one stop at the end of a file until told to go on."""
    rank, flush = os.getpid(), os.fsync

    def slow(descriptor: int) -> None:
        while os.getpid() != rank and not until():
            time.sleep(0.01)
        flush(descriptor)

    os.fsync = slow
    try:
        yield
    finally:
        os.fsync = flush


class Watcher(Recorder):
    """Calls ``action`` when the step after a save has been trained, while its disk is slow."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self._action = action

    def training(self, iteration: int, values: dict[str, float], interval, device) -> None:
        super().training(iteration, values, interval, device)
        if iteration == 3:
            self._action()


def train_while_writing(arguments: list[str], root: Path) -> dict[str, Any]:
    """Train with a disk that is slow until step 3 has been trained.

    Returns:
        The messages, and what was in ``root`` when step 3 had been trained.
    """
    from megatron_llava.parallel.groups import destroy_groups

    gate = root.with_name("gate")
    seen: list[str] = []

    def look() -> None:
        dist.barrier()
        seen.extend(sorted(path.name for path in root.glob("*")))
        dist.barrier()
        gate.touch()

    watcher = Watcher(look)
    try:
        with slow_disk(gate.exists):
            make_trainer(arguments, watcher).run()
    finally:
        destroy_groups()
    return {"messages": watcher.messages, "seen": seen}


def train_until_writer_dies(
    arguments: list[str], folder: Path, rank: int, *, helper: bool = False
) -> str:
    """Train with a disk that is slow, and kill what one rank writes with after step 3.

    Args:
        folder: an empty folder.
        helper: kill a process that the writer started, not the writer.

    Returns:
        The error that ended the run.
    """
    from megatron_llava.parallel.groups import destroy_groups

    def kill() -> None:
        if dist.get_rank() == rank:
            writer = next(p for p in active_children() if type(p).__name__ == "ForkProcess")
            victim = psutil.Process(writer.pid)
            while helper and not victim.children():
                time.sleep(0.01)  # the writer has just been forked
            (victim.children()[0] if helper else victim).kill()
        else:
            gate.touch()

    gate = folder / str(dist.get_rank())
    try:
        with slow_disk(gate.exists):
            make_trainer(arguments, Watcher(kill)).run()
    except ValueError as error:
        return str(error)
    finally:
        destroy_groups()
    return ""


def save_after_sigterm(arguments: list[str]) -> list[str]:
    """Save, have every process that this one started receive SIGTERM, train a step and save again.

    Returns:
        The messages.
    """
    from megatron_llava.parallel.groups import destroy_groups

    recorder = Recorder()
    try:
        trainer = make_trainer(arguments, recorder)
        trainer.save()
        for child in psutil.Process().children():
            child.terminate()
        time.sleep(0.5)
        trainer.run()
    finally:
        destroy_groups()
    return recorder.messages


def save_on_full_disk(arguments: list[str], rank: int) -> str:
    """Save while no file of one rank may grow; returns the error."""
    from megatron_llava.parallel.groups import destroy_groups

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        trainer = make_trainer(arguments, Recorder())
        dist.barrier()
        # Only now: the ranks meet over a file.
        if dist.get_rank() == rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        trainer.save()
    except ValueError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        destroy_groups()
    return ""
