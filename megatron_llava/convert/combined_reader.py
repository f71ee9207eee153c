"""A LLaVA folder of which parts come from elsewhere: the tower, the projector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_llava.convert.rules import Shape


class HFSource(Protocol):
    """What HFReader offers to the conversion: hub names, and where each tensor comes from."""

    folder: Path

    def names(self) -> list[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def source(self, name: str) -> str: ...

    def shape(self, name: str) -> Shape: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def tensor(self, name: str) -> Tensor: ...

    def fingerprint(self) -> list[list[str | int]]: ...


class CombinedReader:
    """Several sources as one; of a name that several have, the first one's counts.

    Args:
        sources: the LLaVA folder's place decides the name in messages: it is `folder`.
    """

    def __init__(self, folder: Path, sources: Sequence[HFSource]) -> None:
        self.folder = folder
        self._sources = list(sources)
        self._owner: dict[str, HFSource] = {}
        for source in reversed(self._sources):
            self._owner |= dict.fromkeys(source.names(), source)

    def names(self) -> list[str]:
        return sorted(self._owner)

    def __contains__(self, name: object) -> bool:
        return name in self._owner

    def source(self, name: str) -> str:
        return self._owner[name].source(name)

    def shape(self, name: str) -> Shape:
        return self._owner[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._owner[name].dtype(name)

    def tensor(self, name: str) -> Tensor:
        return self._owner[name].tensor(name)

    def fingerprint(self) -> list[list[str | int]]:
        return [entry for source in self._sources for entry in source.fingerprint()]
