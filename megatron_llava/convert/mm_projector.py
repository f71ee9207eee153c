"""`mm_projector.bin`: the projector alone, as the original code saves it after its first stage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from megatron_llava.convert.llava_names import PROJECTOR, name_of_original, original_name
from megatron_llava.convert.rules import Shape
from megatron_llava.convert.tensor_source import InMemory

FILE = "mm_projector.bin"
_MARK = "mm_projector."


class ProjectorFile:
    """The tensors of an `mm_projector.bin` under hub names.

    Keys may have any prefix before `mm_projector.`; adapters of the original code save the same
    file with more of them. Nothing is executed: only tensors are unpickled.

    Raises:
        ValueError: no such file, not one of torch's, or without a projector.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except Exception as error:  # pickle, zip and torch raise anything for a damaged file
            raise ValueError(
                f"{path}: cannot be read as tensors ({type(error).__name__})"
            ) from None
        tensors = stored if isinstance(stored, dict) else {}
        parts = {
            PROJECTOR + key.split(_MARK, 1)[1]: tensor
            for key, tensor in tensors.items()
            if isinstance(tensor, Tensor) and _MARK in key
        }
        if not parts:
            raise ValueError(f"{path}: holds no tensor named *{_MARK}*")
        self._stored = {name_of_original(name, parts): name for name in parts}
        self._tensors = InMemory({hub: parts[name] for hub, name in self._stored.items()})

    def names(self) -> list[str]:
        return sorted(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def source(self, name: str) -> str:
        return f"{self.folder}: {self._stored[name]}"

    def shape(self, name: str) -> Shape:
        return self._tensors.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(name)

    def tensor(self, name: str) -> Tensor:
        return self._tensors.tensor(name)

    def fingerprint(self) -> list[list[str | int]]:
        stat = self.folder.stat()
        return [[str(self.folder.resolve()), stat.st_size, stat.st_mtime_ns]]


def write_mm_projector(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write the projector's tensors, given by hub name, under the original names."""
    torch.save({original_name(name): tensor.clone() for name, tensor in tensors}, path)
