"""How many microbatches of each part a pipeline rank has in flight, by core's schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Kinds = tuple[int, ...]
"""Bytes, one number for each kind of activation."""

ROUNDS = 4
"""Times as many microbatches as there are stages show all that more of them would."""


def steps(stages: int, stage: int, chunks: int, microbatches: int) -> Iterator[tuple[str, int]]:
    """What a rank runs in one optimizer step, in order: ("forward" or "backward", its part).

    One forward, one backward: a rank first runs as many forwards as there are stages behind it.
    With virtual stages (Narayanan et al., arXiv:2104.04473) parts take turns, ``stages``
    microbatches at a time, and the forwards ahead are twice the stages behind it and all but one of
    its parts.

    Args:
        stages: pipeline ranks.
        stage: this rank, 0 first.
        chunks: parts of the rank; more than one needs microbatches that ``stages`` divides.
        microbatches: of a data-parallel rank in a step.
    """
    total = microbatches * chunks
    ahead = stages - stage - 1
    if chunks > 1:
        ahead = 2 * ahead + (chunks - 1) * stages
    ahead = min(ahead, total)

    def part(number: int) -> int:
        return number // stages % chunks if chunks > 1 else 0

    for number in range(ahead):
        yield "forward", part(number)
    for number in range(total - ahead):
        yield "forward", part(ahead + number)
        yield "backward", chunks - 1 - part(number)
    for number in range(total - ahead, total):
        yield "backward", chunks - 1 - part(number)


def peak(
    order: Iterator[tuple[str, int]],
    kept: Sequence[Kinds],
    moments: Sequence[Sequence[Kinds]],
) -> Kinds:
    """The bytes of each kind when there are the most in all.

    Args:
        order: see ``steps``.
        kept: what each part keeps from a forward to its backward, by kind.
        moments: how that differs at some moments of the backward of each part.
    """
    flying, most = [0] * len(kept), tuple(0 for _ in kept[0])
    for what, part in order:
        if what == "forward":
            flying[part] += 1
        now = [
            sum(count * held for count, held in zip(flying, kinds, strict=True))
            for kinds in zip(*kept, strict=True)
        ]
        for difference in moments[part] if what == "backward" else ():
            there = tuple(held + more for held, more in zip(now, difference, strict=True))
            most = max(most, there, key=sum)
        most = max(most, tuple(now), key=sum)
        if what == "backward":
            flying[part] -= 1
    return most
