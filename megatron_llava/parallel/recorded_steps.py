"""Steps of a run as files, one folder each, and where two runs differ in a step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_llava.parallel.shards import (
    Difference,
    Shard,
    compare,
    holders,
    keys_of,
    merge,
    replica_differences,
)

_SHARDS, _VALUES = "shards.json", "values.json"
_COMPARED = ("lm loss", "user loss", "align loss", "grad norm")


@dataclass(frozen=True)
class RecordedStep:
    """A step of a run.

    Attributes:
        values: "lm loss" and "grad norm" among others.
        ranks: the parameters of each rank after the step.
    """

    values: dict[str, float]
    ranks: list[list[Shard]]


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far two runs may be apart.

    Attributes:
        values: relative, of losses and gradient norms.
        weights: of the norm of a parameter.
        replicas: of the norm of a part that several ranks of a run hold.
    """

    values: float
    weights: float
    replicas: float


def write_values(folder: Path, step: int, values: dict[str, float]) -> None:
    """Write what is known of a whole step."""
    path = folder / str(step) / _VALUES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def write_shards(folder: Path, step: int, rank: int, shards: Iterable[Shard]) -> None:
    """Write a rank's parameters after a step, one ``.npy`` file each."""
    own = folder / str(step) / f"rank-{rank}"
    own.mkdir(parents=True)
    index = []
    for number, shard in enumerate(shards):
        np.save(own / f"{number}.npy", shard.array)
        index.append([shard.key, shard.global_shape, shard.global_offset])
    (own / _SHARDS).write_text(json.dumps(index), encoding="utf-8")


def read_step(folder: Path, step: int) -> RecordedStep:
    """What was written of a step; arrays stay in their files until they are used."""
    own = folder / str(step)
    values = json.loads((own / _VALUES).read_text(encoding="utf-8"))
    count = len(list(own.glob("rank-*")))
    return RecordedStep(values, [_read_shards(own / f"rank-{rank}") for rank in range(count)])


def _read_shards(folder: Path) -> list[Shard]:
    index = json.loads((folder / _SHARDS).read_text(encoding="utf-8"))
    return [
        Shard(key, tuple(shape), tuple(offset), np.load(folder / f"{number}.npy", mmap_mode="r"))
        for number, (key, shape, offset) in enumerate(index)
    ]


def compare_steps(first: RecordedStep, second: RecordedStep, tolerances: Tolerances) -> str:
    """Hold a step of two runs against each other.

    Returns:
        A summary of what agrees.

    Raises:
        ValueError: one line that names what differs: the parameter and the rank where the
            difference is largest, or else the loss or the gradient norm.
    """
    _compare_replicas("first", first, tolerances.replicas)
    _compare_replicas("second", second, tolerances.replicas)
    apart = _apart(first, second)
    beyond = [one for one in apart if not one.relative <= tolerances.weights]
    said = [
        _compare_value(name, first, second, tolerances.values)
        for name in _COMPARED
        if name in first.values
    ]
    wrong = [text for text, agrees in said if not agrees]
    if beyond:
        worst = max(beyond, key=lambda one: (np.nan_to_num(one.relative, nan=np.inf), one.key))
        others = f"; so do {len(beyond) - 1} other parameters" if len(beyond) > 1 else ""
        raise ValueError("; ".join([f"{_held(worst, first, second)}{others}", *wrong]))
    if wrong:
        raise ValueError("; ".join([*wrong, "the parameters agree"]))
    most = max(apart, key=lambda one: one.relative, default=None)
    parameters = "parameters equal" if most is None else f"parameters agree, most apart: {most}"
    return ", ".join([*(text for text, _ in said), parameters])


def _compare_replicas(name: str, step: RecordedStep, tolerance: float) -> None:
    for key in keys_of(step.ranks):
        differences = replica_differences(step.ranks, key, tolerance)
        if differences:
            raise ValueError(f"in the {name} layout {differences[0]}, though they hold the same")


def _apart(first: RecordedStep, second: RecordedStep) -> list[Difference]:
    """Every parameter that is not equal, bit by bit."""
    keys = keys_of(first.ranks)
    if keys != keys_of(second.ranks):
        odd = sorted(set(keys) ^ set(keys_of(second.ranks)))
        raise ValueError(f"only one layout has {odd[0]}: they are different models")
    found = (compare(key, merge(first.ranks, key), merge(second.ranks, key)) for key in keys)
    return [difference for difference in found if difference is not None]


def _compare_value(
    name: str, first: RecordedStep, second: RecordedStep, tolerance: float
) -> tuple[str, bool]:
    """What to say of a value, and whether the runs agree in it."""
    left, right = first.values[name], second.values[name]
    agrees = abs(left - right) <= tolerance * max(abs(left), abs(right))
    return f"{name} {left:.6g} and {right:.6g}", agrees


def _held(difference: Difference, first: RecordedStep, second: RecordedStep) -> str:
    """The difference with the ranks that hold the element that differs most."""
    places = [holders(step.ranks, difference.key, difference.index) for step in (first, second)]
    ranks = [
        ("rank " if len(place) == 1 else "ranks ") + ", ".join(map(str, place)) for place in places
    ]
    return f"{difference}, held by {ranks[1]} of the second layout and {ranks[0]} of the first"
