"""Tensors by name, of which one is in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from megatron_llava.convert.rules import Shape


class TensorSource(Protocol):
    """What a conversion reads: names, shapes and dtypes are known before any tensor is."""

    def names(self) -> list[str]:
        """All names, in the order in which reading is cheapest."""

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype, without reading it."""

    def tensor(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""


class InMemory:
    """A state dict as a TensorSource."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> Shape:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def converted(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A floating-point tensor in another dtype, any other as it is.

    Raises:
        ValueError: naming the tensor, where a number is too large for that dtype.
    """
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    made = tensor.to(dtype)
    lost = tensor[tensor.isfinite() & ~made.isfinite()]
    if len(lost):
        raise ValueError(
            f"{name} holds {lost[0].item():.4g}, too much for {str(dtype).removeprefix('torch.')}, "
            f"which ends at {torch.finfo(dtype).max:.4g}: take another dtype, such as float32"
        )
    return made


class CastTensors:
    """A TensorSource whose floating-point tensors are converted to one dtype."""

    def __init__(self, source: TensorSource, dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> Shape:
        return self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        found = self._source.dtype(name)
        return self._dtype if found.is_floating_point else found

    def tensor(self, name: str) -> Tensor:
        return converted(self._source.tensor(name), self._dtype, name)


class RenamedTensors:
    """A TensorSource of which some tensors have other names, and others are left out.

    Args:
        names: the source's name of each tensor.
    """

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> Shape:
        return self._source.shape(self._names[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(self._names[name])

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self._names[name])


def stored_bytes(source: TensorSource) -> int:
    """Bytes of all tensors together."""
    return sum(
        source.dtype(name).itemsize * torch.Size(source.shape(name)).numel()
        for name in source.names()
    )
