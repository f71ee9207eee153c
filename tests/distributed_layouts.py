"""Parallel layouts as values: their ranks, their command line and a readable name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

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
