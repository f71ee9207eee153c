r"""What parallelism costs on the CPU: step times against one rank, and bytes predicted and counted.

    python benchmarks/parallel_overhead.py --output benchmarks/results/parallel_overhead.txt

Two processes of one thread each run a small model over gloo at several layouts. The baseline is one
of them alone with half the packs, so that each core has the same number of FLOPs in every row: a
layout without overhead has the ratio 1. It is measured again before every layout, and the ratio is
to that, because machines drift. A row says what is not split between the ranks. Two ranks that do
not talk at all show what they take from each other's memory bandwidth.

Exits with 1 where the bytes that a rank sent are not the predicted ones, to the byte.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from parallel_overhead_rank import Case, run_rank
from report_header import header
from synthetic_store import write_store

from megatron_llava.platform.device import silence_core_warnings

PACKS_PER_RANK = 4
TP2, PP2 = "--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"
OVERLAPS = ("--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather")
BUBBLE = f"the bubble alone is {(2 * PACKS_PER_RANK + 1) / (2 * PACKS_PER_RANK):.3f}"

BASELINE = Case("one rank", (), ranks=1, note="baseline")
CASES = (
    Case("two lone ranks", (), ranks=1, copies=2, note="no communication"),
    Case("TP2", (TP2,), note="norms and residual sums on both"),
    Case("TP2 SP", (TP2, "--sequence-parallel"), note="norms of the tower on both"),
    Case(
        "TP2 SP data",
        (TP2, "--sequence-parallel", "--vision-parallel=data"),
        note="5 views as 3 and 2, optimizer of the tower on both",
    ),
    Case("CP2", ("--context-parallel-size=2",), note="5 views as 3 and 2, optimizer on both"),
    Case("PP2", (PP2,), note=BUBBLE),
    Case("PP2 auto", (PP2, "--pipeline-balance=auto"), note=BUBBLE),
    Case("DP2", (), note="optimizer on both"),
    Case("DP2 distributed", ("--use-distributed-optimizer",), note="optimizer split"),
    Case("DP2 overlaps", OVERLAPS, note="optimizer split"),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each layout")
    parser.add_argument("--layouts", nargs="+", help="names of the layouts; all by default")
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    return parser.parse_args()


def measure(cases: list[Case], steps: int) -> list[list[dict[str, Any]]]:
    """Results by case and rank.

    Raises:
        RuntimeError: a process ended without its results.
    """
    silence_core_warnings()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = write_store(folder / "store")
        barrier, queue = context.Barrier(2), context.SimpleQueue()
        shared = (cases, arguments, PACKS_PER_RANK, steps, folder, barrier, queue)
        processes = [context.Process(target=run_rank, args=(rank, *shared)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError("a rank failed; what it said is above")
        by_rank = dict(queue.get() for _ in processes)
    return [
        [by_rank[rank][number] for rank in range(case.processes)]
        for number, case in enumerate(cases)
    ]


def times_table(cases: list[Case], results: list[list[dict[str, Any]]]) -> list[str]:
    """A line per layout: seconds of a step, of the baseline before it, and their ratios.

    Args:
        cases: the baseline and a layout by turns.
        results: of each case, by rank.
    """
    lines = [
        f"{'layout':<17}{'packs':>6}{'s/step':>9}{'fastest':>9}{'one rank':>10}{'fastest':>9}"
        f"{'ratio':>7}{'fastest':>9}  remark"
    ]
    seconds = [step_seconds(ranks) for ranks in results]
    for number in range(1, len(cases), 2):
        case, own, alone = cases[number], seconds[number], seconds[number - 1]
        pairs = [(f(own), f(alone)) for f in (statistics.median, min)]
        lines.append(
            f"{case.name:<17}{PACKS_PER_RANK * case.ranks:>6}{pairs[0][0]:>9.3f}{pairs[1][0]:>9.3f}"
            f"{pairs[0][1]:>10.3f}{pairs[1][1]:>9.3f}{pairs[0][0] / pairs[0][1]:>7.2f}"
            f"{pairs[1][0] / pairs[1][1]:>9.2f}  {case.note}"
        )
    return lines


def step_seconds(ranks: list[dict[str, Any]]) -> list[float]:
    """Of each step; it has ended when its slowest rank has."""
    return [max(step) for step in zip(*(rank["seconds"] for rank in ranks), strict=True)]


def bytes_table(
    cases: list[Case], results: list[list[dict[str, Any]]]
) -> tuple[list[str], list[str]]:
    """A line per layout, rank and kind; and those where the numbers differ."""
    lines = [f"{'layout':<17}{'rank':>4}  {'kind':<34}{'predicted':>12}{'counted':>12}"]
    wrong = []
    for case, ranks in zip(cases, results, strict=True):
        for rank, result in enumerate(ranks):
            predicted, counted = result["predicted"], result["counted"]
            for kind in sorted({*predicted, *counted}):
                numbers = predicted.get(kind, 0), counted.get(kind, 0)
                text = " ".join(kind)
                lines.append(
                    f"{case.name:<17}{rank:>4}  {text:<34}{numbers[0]:>12,}{numbers[1]:>12,}"
                )
                if numbers[0] != numbers[1]:
                    wrong.append(lines[-1])
            if result["small"]:
                small = f"{result['small']:>12,}"
                lines.append(f"{case.name:<17}{rank:>4}  {'small messages':<34}{'-':>12}{small}")
    return lines, wrong


def main() -> None:
    arguments = parse_arguments()
    known = [case.name for case in CASES]
    for name in arguments.layouts or []:
        if name not in known:
            sys.exit(f"parallel_overhead: --layouts: {name!r} is not one of {', '.join(known)}")
    chosen = [case for case in CASES if case.name in (arguments.layouts or known)]
    cases = [each for case in chosen for each in (BASELINE, case)]
    top = header()
    results = measure(cases, arguments.steps)
    table, wrong = bytes_table(cases, results)
    text = [
        *top,
        f"equal in every row: {PACKS_PER_RANK} packs' FLOPs and one thread for each rank",
        "",
        *times_table(cases, results),
        "",
        "bytes sent per rank and step",
        *table,
    ]
    print("\n".join(text))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    if wrong:
        sys.exit("the count is not the prediction:\n" + "\n".join(wrong))
    print("the count is the prediction, to the byte")


if __name__ == "__main__":
    main()
