"""Balanced sampling of captions: Xu et al. 2023, "Demystifying CLIP Data", Algorithm 1.

An entry that c captions hold is drawn with probability min(1, t / c) for each of them, and a
caption stays if any of its entries is drawn. The draws are independent, so it stays with
probability 1 - prod(1 - min(1, t / c)). One number for each record decides that; it depends on the
seed and on the record's number among all records only, so shards do not change what stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def entry_probabilities(captions: NDArray[np.int64], max_per_entry: int) -> NDArray[np.float64]:
    """min(1, t / c): [entries].

    Args:
        captions: c, [entries].
        max_per_entry: t, above 0.
    """
    return max_per_entry / np.maximum(captions, max_per_entry)


def stays(probabilities: NDArray[np.float64], seed: int, number: int) -> bool:
    """Whether a record stays, given the probabilities of the entries that its caption holds: [m].

    One that holds none does not.
    """
    return drawn(seed, number) < 1 - float(np.prod(1 - probabilities))


def drawn(seed: int, number: int) -> float:
    """A number of [0, 1) for a record, a multiple of 2^-53."""
    digest = blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@dataclass(frozen=True)
class EntryStatistics:
    """Entries that no caption holds, of the tail, of the head; the tail's share of all matches."""

    none: int
    tail: int
    head: int
    tail_share: float

    @classmethod
    def of(cls, captions: NDArray[np.int64], in_tail: NDArray[np.bool_]) -> EntryStatistics:
        """captions: that hold each entry, [entries]; in_tail: fewer than t before, [entries]."""
        held = captions > 0
        return cls(
            none=int((~held).sum()),
            tail=int((held & in_tail).sum()),
            head=int((held & ~in_tail).sum()),
            tail_share=float(captions[in_tail].sum() / max(captions.sum(), 1)),
        )


@dataclass(frozen=True, kw_only=True)
class BalanceSummary:
    """What sampling did to the records of a share; `before` is of all shares.

    Attributes:
        unmatchable: entries that no caption can hold.
    """

    max_per_entry: int
    records: int
    matched: int
    kept: int
    unmatchable: int
    before: EntryStatistics
    after: EntryStatistics

    def __str__(self) -> str:
        lines = [
            f"{self.records:,} captions, {self.records - self.matched:,} hold no entry, "
            f"{self.kept:,} kept",
            f"{'entries held by':<20}{'none':>12}{'tail':>12}{'head':>12}{'tail matches':>14}",
        ]
        for name, part in (("all captions", self.before), ("what is kept here", self.after)):
            lines.append(
                f"{name:<20}{part.none:>12,}{part.tail:>12,}{part.head:>12,}{part.tail_share:>14.2%}"
            )
        lines.append(f"tail: held by fewer than {self.max_per_entry:,} of all captions")
        if self.unmatchable:
            lines.append(
                f"{self.unmatchable:,} entries can match nothing: they hold one of , . ; : ? ! `"
            )
        return "\n".join(lines)
