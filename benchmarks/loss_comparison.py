"""Curves of losses side by side: where they are no noise, how far they are apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[str, float]]
"""(where, loss) of some places, such as means over windows of steps."""


@dataclass(frozen=True)
class Pair:
    """Two runs to compare: the first is the one that the other is measured by."""

    name: str
    reference: str
    other: str


def windows(losses: Sequence[float], count: int) -> list[tuple[str, float]]:
    """Means over so many windows of steps, as even as they can be."""
    bounds = [round(len(losses) * part / count) for part in range(count + 1)]
    return [
        (f"{start + 1} to {end}", statistics.fmean(losses[start:end]))
        for start, end in zip(bounds, bounds[1:], strict=False)
        if end > start
    ]


def differences(curves: Mapping[str, Curve], pair: Pair, floor: float) -> list[float | None]:
    """(other - reference) / reference at each place; None where a loss is below the floor."""
    both = zip(curves[pair.reference], curves[pair.other], strict=True)
    return [
        (other - reference) / reference if min(reference, other) >= floor else None
        for (_, reference), (_, other) in both
    ]


def table(
    where: str, curves: Mapping[str, Curve], pairs: Sequence[Pair], floor: float
) -> list[str]:
    """A row for each place: every run's loss, and the difference of each pair."""
    found = [differences(curves, pair, floor) for pair in pairs]
    titles = [where, *curves, *(pair.name for pair in pairs)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    places = [place for place, _ in next(iter(curves.values()))]
    for number, place in enumerate(places):
        losses = [f"{curve[number][1]:.4f}" for curve in curves.values()]
        parts = [_percent(of_pair[number]) for of_pair in found]
        lines.append(f"| {' | '.join([place, *losses, *parts])} |")
    return lines


def summary(curves: Mapping[str, Curve], pairs: Sequence[Pair], floor: float) -> list[str]:
    """A line for each pair: over the places above the floor, and at the last of them."""
    lines = []
    for pair in pairs:
        all_found = differences(curves, pair, floor)
        found = [difference for difference in all_found if difference is not None]
        if not found:
            lines.append(f"- {pair.name}: no place where both losses are at least {floor:g}")
            continue
        root = math.sqrt(statistics.fmean(difference**2 for difference in found))
        largest = max(found, key=abs)
        lines.append(
            f"- {pair.name}: {len(found)} of {len(all_found)} places are above the floor; mean "
            f"{_percent(statistics.fmean(found))}, root mean square {root:.1%}, largest "
            f"{_percent(largest)}, last {_percent(found[-1])}"
        )
    return lines


def accuracy(answers: Mapping[str, Mapping[str, bool]], pairs: Sequence[Pair]) -> list[str]:
    """Right answers of each run with their standard error, and what each pair does not share.

    Args:
        answers: of each run, by question, whether it is right.
    """
    lines = ["| run | right | of | exact match | standard error |", "|---|---|---|---|---|"]
    for name, rights in answers.items():
        right, count = sum(rights.values()), len(rights)
        share = right / count
        error = math.sqrt(share * (1 - share) / count)
        lines.append(f"| {name} | {right} | {count} | {share:.1%} | {error:.1%} |")
    lines.append("")
    for pair in pairs:
        one, other = answers[pair.reference], answers[pair.other]
        lost = sum(one[question] and not other[question] for question in one)
        won = sum(other[question] and not one[question] for question in one)
        lines.append(
            f"- {pair.name}: {lost} questions are right in {pair.reference} alone, {won} in "
            f"{pair.other} alone"
        )
    return lines


def _percent(difference: float | None) -> str:
    return "below the floor" if difference is None else f"{difference:+.1%}"
