"""One answered question, as scorers see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer beside the truth.

    Attributes:
        kind: of the question; scores are told apart by it.
        image: name of the question's first image, None without one.
        truths: one or several right answers.
    """

    kind: str
    image: str | None
    answer: str
    truths: tuple[str, ...]
