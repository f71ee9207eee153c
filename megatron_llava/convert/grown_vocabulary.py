"""More rows for the embedding and the output weight, for tokens that are added."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.families import EMBEDDING, LM_HEAD
from megatron_llava.convert.rules import Shape
from megatron_llava.convert.tensor_source import TensorSource

_GROW = (EMBEDDING, LM_HEAD)


def grown_rows(tensor: Tensor, rows: int) -> Tensor:
    """`tensor` [V, d] with copies of its mean row (taken in float32) up to so many rows.

    A token that was never trained then is neither likelier nor stranger than the average one.
    """
    missing = rows - tensor.shape[0]
    assert missing >= 0
    mean = tensor.mean(dim=0, dtype=torch.float32).to(tensor.dtype)
    return torch.cat([tensor, mean[None].expand(missing, -1)])


class GrownTensors:
    """A TensorSource (hub names) with a vocabulary of `rows`."""

    def __init__(self, source: TensorSource, rows: int) -> None:
        self._source, self._rows = source, rows

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> Shape:
        shape = self._source.shape(name)
        return (self._rows, *shape[1:]) if name in _GROW else shape

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        return grown_rows(tensor, self._rows) if name in _GROW else tensor


class GrownReader(GrownTensors):
    """The same of a folder."""

    def __init__(self, source: HFSource, rows: int) -> None:
        super().__init__(source, rows)
        self._reader = source
        self.folder: Path = source.folder

    def __contains__(self, name: object) -> bool:
        return name in self._reader

    def source(self, name: str) -> str:
        return self._reader.source(name)

    def fingerprint(self) -> list[list[str | int]]:
        return [*self._reader.fingerprint(), ["rows", self._rows]]
