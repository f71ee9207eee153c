"""What rows, attention and views of a pack cost on this machine, as flags of training.

    python benchmarks/calibrate_cost.py --packs 40 -- FLAGS OF TRAINING
    python benchmarks/calibrate_cost.py --output benchmarks/results/calibrate_cost.md

Runs forward and backward of single packs of random samples, of an eighth to all of --seq-length,
and fits seconds = constant + row R + attended A + view V to them: R rows, A the sum of the squared
rows of each sample, V views, no coefficient below 0. Prints the coefficients as --pack-cost, beside
the FLOPs of the architecture that training takes without it, and what ranks would wait for each
other with either, if packs cost what was fitted. The waiting where packs stay as made is the
baseline. Without flags a small model and random samples stand in. One rank; all samples of the
store have to fit --seq-length.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from report_header import header
from synthetic_store import mixed_flags, write_mixed_store

from megatron_llava.platform.device import join_process_group, leave_process_group, set_up_device

EXPLAINED = 0.9
"""Share of the variance below which the machine was too busy to tell."""
SCALE = 10**9
"""Integers of a --pack-cost for the largest coefficient: ratios to nine digits."""


class Measured(NamedTuple):
    """One pack."""

    rows: int
    attended: int
    views: int
    seconds: float


def fitted(packs: list[Measured]) -> tuple[NDArray[np.float64], float]:
    """Seconds of a row, of an attended pair and of a view, none below 0; and the share of the
    variance of the seconds that they and a constant explain."""
    from scipy.optimize import nnls

    features = np.array([[1, pack.rows, pack.attended, pack.views] for pack in packs], dtype=float)
    seconds = np.array([pack.seconds for pack in packs])
    scale = features.max(axis=0).clip(min=1)
    solution, _ = nnls(features / scale, seconds)
    left = seconds - features @ (solution / scale)
    return (solution / scale)[1:], float(1 - left.var() / seconds.var())


def as_integers(costs: NDArray[np.float64]) -> list[int]:
    """Costs in one unit, small enough for packs of a million rows in 64 bits."""
    unit = costs[costs > 0].min()
    integers = np.round(costs / unit * 100)
    if integers.max() > SCALE:
        integers = np.round(costs / costs.max() * SCALE)
    return [int(value) for value in integers]


def measure(trainer: Any, config: Any, count: int, repeats: int) -> list[Measured]:
    """Seconds of forward and backward, the fastest of some, of packs of random samples."""
    from megatron_llava.data.collate import collate
    from megatron_llava.data.merged_store import open_store
    from megatron_llava.data.packing import sample_sizes
    from megatron_llava.training.batches import row_multiple
    from megatron_llava.training.step import run_batches
    from megatron_llava.vision.settings import image_settings

    settings, store = image_settings(config), open_store(config.data.data_path)
    lengths, views = sample_sizes(store, settings)
    generator = np.random.default_rng(0)
    packs = []
    for number in range(count + 1):
        room = config.data.seq_length * generator.uniform(1 / 8, 1)
        order = generator.permutation(len(store))
        taken = order[np.cumsum(lengths[order]) <= max(room, lengths[order[0]])]
        samples = [store.load(int(index)) for index in taken]
        batch = collate(samples, settings, pad_multiple=row_multiple(config)).to_torch(
            trainer.device
        )
        times = []
        for _ in range(repeats):
            for part in trainer.wrapped:
                part.zero_grad_buffer()
            started = time.perf_counter()
            run_batches(
                trainer.wrapped,
                itertools.repeat(batch, 1),
                1,
                len(batch.position_ids),
                reduction="token",
                forward_only=False,
            )
            times.append(time.perf_counter() - started)
        if number:  # the first pack meets a cold allocator
            rows = lengths[taken]
            sizes = int(rows.sum()), int((rows * rows).sum()), int(views[taken].sum())
            packs.append(Measured(*sizes, min(times)))
    return packs


def waits(config: Any, costs: NDArray[np.float64], integers: list[int], size: int) -> list[float]:
    """Shares of waiting of so many ranks with packs as made, ordered by FLOPs, by --pack-cost."""
    from megatron_llava.data.merged_store import open_store
    from megatron_llava.data.packing import Balance, plan_epoch, sample_sizes, wait_fraction
    from megatron_llava.parallel.pack_cost import pack_balance
    from megatron_llava.vision.settings import image_settings

    lengths, views = sample_sizes(open_store(config.data.data_path), image_settings(config))
    # As many packs as blocks of balancing need: the store, over and over.
    repeats = -(-size * 64 * config.data.seq_length // int(lengths.sum()))
    lengths, views = np.tile(lengths, repeats), np.tile(views, repeats)
    flops = pack_balance(config)
    row, attended, view = integers
    fitted_balance = Balance(group=size, row=row, attended=attended, view=view)
    result = []
    for balance in (None, replace(flops, group=size), fitted_balance):
        how = {"seed": 0, "epoch": 0, "views": views, "balance": balance}
        plan = plan_epoch(lengths, config.data.seq_length, **how)
        sizes = lengths[plan.sample_ids].astype(float)
        starts = plan.pack_offsets[:-1]
        parts = [sizes, sizes**2, views[plan.sample_ids].astype(float)]
        totals = [np.add.reduceat(part, starts) for part in parts]
        pack_costs = sum(c * total for c, total in zip(costs, totals, strict=True))
        result.append(wait_fraction(pack_costs, size))
    return result


def report(packs: list[Measured], config: Any) -> list[str]:
    """The lines of the result."""
    from megatron_llava.parallel.pack_cost import pack_balance

    costs, explained = fitted(packs)
    integers = as_integers(costs)
    flops = pack_balance(config)
    assert flops is not None
    estimate = np.array([flops.row, flops.attended, flops.view], dtype=float)
    lines = [
        f"{len(packs)} packs of {min(p.rows for p in packs)} to {max(p.rows for p in packs)} rows, "
        f"{explained:.1%} of the variance of their seconds explained",
        "",
        "| | row | pair of rows of a sample | view |",
        "|---|---:|---:|---:|",
        "| fitted, ns | " + " | ".join(f"{cost * 1e9:.3g}" for cost in costs) + " |",
        "| fitted, in rows | " + " | ".join(_in_rows(costs)) + " |",
        "| by FLOPs, in rows | " + " | ".join(_in_rows(estimate)) + " |",
        "",
        f"--pack-cost {','.join(map(str, integers))}",
        "",
        "| ranks | waiting, packs as made (baseline) | ordered by FLOPs | by this --pack-cost |",
        "|---:|---:|---:|---:|",
    ]
    for size in (8, 64):
        shares = waits(config, costs, integers, size)
        lines.append(f"| {size} | " + " | ".join(f"{share:.2%}" for share in shares) + " |")
    return lines


def _in_rows(costs: NDArray[np.float64]) -> list[str]:
    return [f"{cost / costs[0]:.3g}" if costs[0] else "-" for cost in costs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", type=int, default=40, help="how many are measured")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, the fastest counts")
    parser.add_argument("--output", help="file to write the report to as well")
    parser.add_argument("flags", nargs="*", help="of training, behind --")
    arguments = parser.parse_args()
    top = header()
    with tempfile.TemporaryDirectory() as folder:
        from megatron_llava.config.cli import parse_args

        flags = arguments.flags or [
            *mixed_flags(Path(folder) / "store"),
            "--device=cpu",
            "--train-iters=1",
            "--lr=1e-5",
            "--global-batch-size=1",
        ]
        from megatron_llava.train import prepare

        config = prepare(parse_args(flags))
        device = set_up_device(config.parallel.device, tf32=config.precision.tf32)
        if not arguments.flags:
            write_mixed_store(Path(folder) / "store")
        from megatron_llava.observe.metrics import Reporter
        from megatron_llava.training.run import open_trainer

        join_process_group(config.parallel.device, 10)
        try:
            silent = Reporter(
                active=False, train_iters=1, log_file=None, tensorboard_dir=None, progress_bar=False
            )
            with open_trainer(config, device, silent) as trainer:
                packs = measure(trainer, config, arguments.packs, arguments.repeats)
        finally:
            leave_process_group()
        _, explained = fitted(packs)
        if explained < EXPLAINED:
            sys.exit(
                f"rows, attention and views explain {explained:.1%} of the variance of the "
                f"seconds, less than {EXPLAINED:.0%}: something else runs here, or give more "
                "--repeats"
            )
        text = "\n".join([*top, "", *report(packs, config)])
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
