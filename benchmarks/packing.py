"""How long packing plans take, how full packs are, and how long ranks wait for each other.

    python benchmarks/packing.py --output benchmarks/results/packing.md

Against best-fit decreasing over a SortedList, as LLaVA-OneVision-2 packs, on the same lengths in
the same run. Lengths: log-normal with a mean of 1,400; and a mixture with the proportions of a
published set (474,080 samples: 188,447 academic, 186,060 Vision-FLAN, 99,573 image-text) whose
images have the AnyRes token counts of usual sizes. Waiting is simulated with the cost of Qwen2-7B
and SO400M.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from report_header import header
from sortedcontainers import SortedList

from megatron_llava.data.packing import Balance, PackingPlan, plan_epoch, wait_fraction

SAMPLES = 474_080
LARGE = 85_000_000
CAPACITIES = (8192, 32768)
VIEW_TOKENS = 729
# Visual tokens of 500x375, 640x480, 336x336, 1024x899 and 384x384 on the five grids of 336 pixels.
ANYRES = np.array([2340, 2340, 1176, 2634, 2928])
# Qwen2-7B and SO400M/384, as parallel/pack_cost.py computes them.
COSTS = {"row": 13_050_576_896, "attended": 200_704, "view": 640_813_814_784}


def log_normal(count: int, generator: np.random.Generator) -> np.ndarray:
    """Lengths with a median of 1,097 and a mean of 1,400."""
    return np.exp(generator.normal(7.0, 0.7, count)).astype(np.int64)


def mixture(count: int, generator: np.random.Generator) -> np.ndarray:
    """Text and images in the proportions of that set."""
    shares = np.array([188_447, 186_060, 99_573]) / SAMPLES
    parts = []
    for share, text, with_image in zip(shares, (4.2, 5.0, 5.8), (1.0, 1.0, 0.9), strict=True):
        size = round(count * share)
        words = np.exp(generator.normal(text, 0.8, size)).astype(np.int64)
        visual = generator.choice(ANYRES, size) * (generator.random(size) < with_image)
        parts.append(words + visual + 1)
    lengths = np.concatenate(parts)
    generator.shuffle(lengths)
    return lengths


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> int:
    """Number of packs; the baseline keeps the room of every open pack in a SortedList."""
    rooms: SortedList = SortedList()
    packs: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = rooms.bisect_left((length, -1))
        if place == len(rooms):
            number, room = len(packs), capacity
            packs.append([])
        else:
            room, number = rooms.pop(place)
        packs[number].append(index)
        if room > length:
            rooms.add((room - length, number))
    return len(packs)


def seconds(function, *arguments, **options):
    """(seconds, result)."""
    started = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - started, result


def pack_costs(plan: PackingPlan, lengths: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Cost of each pack."""
    taken, starts = lengths[plan.sample_ids], plan.pack_offsets[:-1]
    return (
        COSTS["row"] * plan.pack_rows.astype(float)
        + COSTS["attended"] * np.add.reduceat(taken * taken, starts)
        + COSTS["view"] * np.add.reduceat(views[plan.sample_ids], starts)
    )


def fills() -> list[str]:
    """Time and fill of both."""
    lines = [
        f"{SAMPLES:,} samples",
        "",
        "| lengths | pack | ours, s | fill | SortedList, s | fill | times as fast |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, draw in (("log-normal", log_normal), ("fine-tuning mixture", mixture)):
        drawn = draw(SAMPLES, np.random.default_rng(0))
        for capacity in CAPACITIES:
            lengths = np.clip(drawn, 1, capacity)
            tries = [
                seconds(plan_epoch, lengths, capacity, seed=seed, epoch=0) for seed in range(3)
            ]
            ours, plan = min(tries, key=lambda found: found[0])
            theirs, packs = seconds(best_fit_decreasing, lengths, capacity)
            lines.append(
                f"| {name} | {capacity:,} | {ours:.3f} | {plan.fill_fraction(capacity):.4%} | "
                f"{theirs:.2f} | {lengths.sum() / (packs * capacity):.4%} | {theirs / ours:.0f} |"
            )
    return lines


def waits() -> list[str]:
    """Simulated waiting of data-parallel ranks."""
    lines = [
        "Share of the ranks' time that is waiting for the slowest pack",
        "",
        "| lengths | pack | ranks | as packed | balanced |",
        "|---|---:|---:|---:|---:|",
    ]
    balance = Balance(group=128, **{name: cost // 1024 for name, cost in COSTS.items()})
    for name, draw in (("log-normal", log_normal), ("fine-tuning mixture", mixture)):
        drawn = draw(SAMPLES, np.random.default_rng(0))
        for capacity in CAPACITIES:
            lengths = np.clip(drawn, 1, capacity)
            views = lengths // VIEW_TOKENS
            plans = [
                plan_epoch(lengths, capacity, seed=0, epoch=0, views=views, balance=chosen)
                for chosen in (None, balance)
            ]
            for ranks in (64, 128):
                plain, balanced = (
                    wait_fraction(pack_costs(plan, lengths, views), ranks) for plan in plans
                )
                lines.append(f"| {name} | {capacity:,} | {ranks} | {plain:.1%} | {balanced:.1%} |")
    return lines


def large() -> list[str]:
    """Time, fill and memory at 85 million samples, balanced as well."""
    lines = []
    for capacity in CAPACITIES:
        lengths = np.clip(log_normal(LARGE, np.random.default_rng(0)), 1, capacity)
        took, plan = seconds(plan_epoch, lengths, capacity, seed=0, epoch=0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append(
            f"{LARGE:,} samples, packs of {capacity:,}: {took:.1f} s, {len(plan):,} packs, filled "
            f"{plan.fill_fraction(capacity):.4%}, peak {peak:.2f} GiB"
        )
        del plan, lengths
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-large", action="store_true", help="leave out 85 million samples")
    parser.add_argument("--output", help="file to write the report to as well")
    arguments = parser.parse_args()
    # The large plans first: the peak of memory is that of the process.
    big = [] if arguments.without_large else [*large(), ""]
    report = "\n".join([*header(), "", *big, *fills(), "", *waits()])
    print(report)
    if arguments.output:
        Path(arguments.output).write_text(report + "\n")


if __name__ == "__main__":
    main()
