"""Parts of parameters: who holds what, merged into wholes and held against each other.

Parameters of different layouts can be compared when they are merged, and so can ranks of one layout
that hold the same part: data-parallel replicas, weights that tensor-parallel ranks share, and
embeddings that are tied across pipeline stages. Nothing here needs torch or a process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np


@dataclass(frozen=True)
class Shard:
    """A rank's part of one parameter.

    Attributes:
        key: name of the parameter: its key in a checkpoint, with the number of the layer among all
            layers of the model.
        global_shape: shape of the whole parameter, without rows that pad the vocabulary.
        global_offset: where the part begins in it.
        array: float32, as many axes as the whole.
    """

    key: str
    global_shape: tuple[int, ...]
    global_offset: tuple[int, ...]
    array: np.ndarray

    @property
    def slices(self) -> tuple[slice, ...]:
        """The part of the whole that this is."""
        sizes = zip(self.global_offset, self.array.shape, strict=True)
        return tuple(slice(offset, offset + size) for offset, size in sizes)

    def covers(self, index: Sequence[int]) -> bool:
        """Whether the element at ``index`` of the whole lies in this part."""
        return all(part.start <= i < part.stop for part, i in zip(self.slices, index, strict=True))


@dataclass(frozen=True)
class Difference:
    """The largest difference of two versions of a parameter.

    Attributes:
        key: name of the parameter.
        index: where in the whole parameter the difference is largest.
        relative: norm of the difference over the norm of the first version.
    """

    key: str
    index: tuple[int, ...]
    relative: float

    def __str__(self) -> str:
        return f"{self.key}{list(self.index)} by {self.relative:.1e} of its norm"


@dataclass(frozen=True)
class ReplicaDifference:
    """Two ranks that hold the same part of a parameter disagree about it."""

    ranks: tuple[int, int]
    difference: Difference

    def __str__(self) -> str:
        return f"ranks {self.ranks[0]} and {self.ranks[1]} differ in {self.difference}"


def keys_of(ranks: Sequence[Sequence[Shard]]) -> list[str]:
    """The parameters that the ranks hold parts of, sorted."""
    return sorted({shard.key for shards in ranks for shard in shards})


def merge(ranks: Sequence[Sequence[Shard]], key: str) -> np.ndarray:
    """The whole parameter ``key``, from the parts that all ranks hold.

    Where several ranks hold a part, the first one's counts: see ``replica_differences``.

    Args:
        ranks: the shards of each rank.

    Raises:
        ValueError: no rank holds some element, or two shards disagree about the whole's shape.
    """
    parts = [shard for shards in ranks for shard in shards if shard.key == key]
    shapes = sorted({shard.global_shape for shard in parts})
    if len(shapes) != 1:
        raise ValueError(f"{key}: shards of parameters of different shapes: {shapes}")
    whole = np.zeros(shapes[0], np.float32)
    held = np.zeros(shapes[0], bool)
    for shard in reversed(parts):
        whole[shard.slices] = shard.array
        held[shard.slices] = True
    if not held.all():
        missing = [int(i) for i in np.argwhere(~held)[0]]
        raise ValueError(f"{key}: no rank holds the element at {missing} of {list(shapes[0])}")
    return whole


def replica_differences(
    ranks: Sequence[Sequence[Shard]], key: str, tolerance: float = 0.0
) -> list[ReplicaDifference]:
    """Ranks that hold the same part of ``key`` as an earlier rank, but with other numbers.

    Each rank is held against the first one that has the part.

    Args:
        tolerance: of the part's norm; replicas do the same arithmetic, so that 0 is expected.
    """
    found = [
        (shard.global_offset, shard.array.shape, rank, shard)
        for rank, shards in enumerate(ranks)
        for shard in shards
        if shard.key == key
    ]
    found.sort(key=lambda entry: entry[:3])
    differences = []
    for _, replicas in groupby(found, key=lambda entry: entry[:2]):
        (_, _, first_rank, first), *others = replicas
        for _, _, rank, shard in others:
            difference = compare(key, first.array, shard.array, first.global_offset)
            if difference is not None and not difference.relative <= tolerance:
                differences.append(ReplicaDifference((first_rank, rank), difference))
    return differences


def compare(
    key: str, expected: np.ndarray, found: np.ndarray, offset: Sequence[int] | None = None
) -> Difference | None:
    """Where two versions of a parameter differ most, and by how much; None for equal numbers.

    Args:
        offset: where the arrays begin in the whole parameter; at its beginning if not given.
    """
    assert expected.shape == found.shape, (key, expected.shape, found.shape)
    if np.array_equal(expected, found):
        return None
    apart = np.abs(expected.astype(np.float64) - found)
    # A number that is none is the worst difference of all.
    place = np.unravel_index(int(np.nan_to_num(apart, nan=np.inf).argmax()), apart.shape)
    index = tuple(int(i) + o for i, o in zip(place, offset or (0,) * apart.ndim, strict=True))
    norm = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    distance = float(np.linalg.norm(apart.ravel()))
    return Difference(key, index, distance / norm if norm > 0 else float("inf"))


def holders(ranks: Sequence[Sequence[Shard]], key: str, index: Sequence[int]) -> list[int]:
    """The ranks that hold the element at ``index`` of the parameter ``key``."""
    return [
        rank
        for rank, shards in enumerate(ranks)
        if any(shard.key == key and shard.covers(index) for shard in shards)
    ]
