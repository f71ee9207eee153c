"""Parallel layouts as values: their ranks, their command line and a readable name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from megatron_llava.parallel.shards import compare, keys_of, merge, replica_differences

# Adam divides a gradient by its own size. A parameter whose true gradient is zero (a key's bias:
# softmax does not see it) would take full steps of rounding noise, different at every layout. With
# this much in the denominator a step follows the gradient's size, and noise stays noise; the other
# gradients (about 2e-3 for each element, after clipping) still move every parameter. The rate is
# high so that they move by far more than the tolerance.
COMMON = ("--adam-eps=1e-4", "--lr=4e-3")

DISTRIBUTED = {"distopt": True}
OVERLAPPED = {**DISTRIBUTED, "grad_overlap": True, "param_overlap": True, "bucket": 20_000}

_FLAGS = {
    "tp": "--tensor-model-parallel-size={}",
    "pp": "--pipeline-model-parallel-size={}",
    "vpp_layers": "--num-layers-per-virtual-pipeline-stage={}",
    "virtual_stages": "--num-virtual-stages-per-pipeline-rank={}",
    "cp": "--context-parallel-size={}",
    "sp": "--sequence-parallel",
    "first": "--decoder-first-pipeline-num-layers={}",
    "last": "--decoder-last-pipeline-num-layers={}",
    "balance": "--pipeline-balance={}",
    "no_p2p_overlap": "--no-overlap-p2p-communication",
    "vision": "--vision-parallel={}",
    "distopt": "--use-distributed-optimizer",
    "grad_overlap": "--overlap-grad-reduce",
    "param_overlap": "--overlap-param-gather",
    "bucket": "--ddp-bucket-size={}",
    "recompute": "--recompute-granularity={}",
    "recompute_vision": "--recompute-vision",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread over ranks, and what it recomputes: nothing that changes its result.

    Attributes:
        dp: data-parallel replicas; it has no flag and follows from the ranks.
        vpp_layers: decoder layers of a virtual pipeline stage.
        virtual_stages: virtual stages of a rank, which says the same another way.
        first, last: decoder layers of the first and last pipeline stage.
        recompute: "selective", or "uniform" or "block" for full recomputation of single layers.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    vpp_layers: int | None = None
    virtual_stages: int | None = None
    first: int | None = None
    last: int | None = None
    balance: str | None = None
    no_p2p_overlap: bool = False
    sp: bool = False
    vision: str | None = None
    distopt: bool = False
    grad_overlap: bool = False
    param_overlap: bool = False
    bucket: int | None = None
    recompute: str | None = None
    recompute_vision: bool = False

    @property
    def world_size(self) -> int:
        """Ranks that the layout needs."""
        return self.tp * self.pp * self.cp * self.dp

    @property
    def flags(self) -> list[str]:
        """What megatron_llava.train must be told."""
        flags = []
        for name, flag in _FLAGS.items():
            value = getattr(self, name)
            if name == "recompute" and value in ("uniform", "block"):
                value = f"full --recompute-method={value} --recompute-num-layers=1"
            if value not in (None, False) and (name, value) not in (
                ("tp", 1),
                ("pp", 1),
                ("cp", 1),
            ):
                flags += flag.format(value).split()
        return flags

    def __str__(self) -> str:
        """Such as tp2-pp2-sp: all that is not the default."""
        words = []
        for name, field in self.__dataclass_fields__.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            word = name.replace("_", "")
            words.append(word if value is True else f"{word}{value}")
        return "-".join(words) or "one"


def distributed(*layouts: Layout) -> Callable[[Any], Any]:
    """Run a test once for each layout, which it takes as ``layout`` and is named after."""
    return pytest.mark.parametrize("layout", layouts, ids=str)


def assert_same_steps(steps, expected, tolerance=1e-4):
    assert [step["iteration"] for step in steps] == [step["iteration"] for step in expected]
    for step, reference in zip(steps, expected, strict=True):
        assert step.keys() == reference.keys()
        for name in {"lm loss", "user loss", "align loss", "grad norm"} & reference.keys():
            assert step[name] == pytest.approx(reference[name], rel=tolerance), (name, step)
        assert step["lr"] == reference["lr"]
        assert step["samples"] == reference["samples"] == sum(step["kinds"])
        assert step["kinds"] == reference["kinds"]


def assert_same_parameters(ranks, reference, tolerance):
    """Replicas agree bit by bit, and the merged parameters are those of one rank."""
    assert keys_of(ranks) == keys_of([reference])
    for key in keys_of(ranks):
        replicas = replica_differences(ranks, key)
        assert not replicas, str(replicas[0])
        difference = compare(key, merge([reference], key), merge(ranks, key))
        assert difference is None or difference.relative < tolerance, str(difference)
