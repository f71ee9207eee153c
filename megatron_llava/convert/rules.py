"""One row per Megatron parameter: which Hugging Face tensors it is made of, and how.

A row is data: names, a kind (the pure function both ways), shapes, and the way tensor parallelism
splits the parameter. Rows hold concrete numbers; `{layer}` is the only placeholder.
Notation: d hidden size, g query groups, q heads per group, k channels per head, f ffn size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]

# How tensor parallelism splits a Megatron parameter.
REPLICATED = "replicated"  # every rank holds all of it
COLUMN = "column"  # contiguous chunks of dimension 0
ROW = "row"  # contiguous chunks of dimension 1
STACKED_ROW = "stacked_row"  # contiguous chunks of dimension 2
VOCABULARY = "vocabulary"  # dimension 0, after padding the rows to a multiple of the ranks
QKV = "qkv"  # dimension 0 in whole query groups
GATE_UP = "gate_up"  # dimension 0 of the gate half and of the up half, each on its own
TENSOR_PARALLEL_AXES = (REPLICATED, COLUMN, ROW, STACKED_ROW, VOCABULARY, QKV, GATE_UP)


class Kind(Protocol):
    """A bijection between a tuple of Hugging Face tensors and one Megatron tensor."""

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape: ...

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor: ...

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Copy:
    """One tensor, the same on both sides."""

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return hf_shapes[0]

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0]

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,)


@dataclass(frozen=True)
class GroupedQKV:
    """Query, key, value -> [g * (q + 2) * k, ...]: per query group [its q heads | key | value].

    Works on weights [rows, d] and biases [rows] alike; plain multi-head attention is q = 1.
    """

    groups: int
    heads_per_group: int
    channels: int

    @property
    def _rows(self) -> tuple[int, int, int]:
        return self.heads_per_group * self.channels, self.channels, self.channels

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return (self.groups * sum(self._rows), *hf_shapes[0][1:])

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        grouped = [
            tensor.reshape(self.groups, rows, *tensor.shape[1:])
            for tensor, rows in zip(tensors, self._rows, strict=True)
        ]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        grouped = tensor.reshape(self.groups, sum(self._rows), *tensor.shape[1:])
        return tuple(part.flatten(0, 1) for part in grouped.split(self._rows, dim=1))


@dataclass(frozen=True)
class GateUp:
    """Gate [f, d] and up [f, d] -> [2f, d], gate first."""

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return (2 * hf_shapes[0][0], *hf_shapes[0][1:])

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=0)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.chunk(2, dim=0))


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape -> [n, ...]: the LoRA factors A of query, key and value, or gate and up.

    Each keeps its own A, as adapters in PEFT's format have; their factors B are GroupedQKV and
    GateUp, whose rows they multiply.
    """

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return (len(hf_shapes), *hf_shapes[0])

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors))

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.unbind(0))


@dataclass(frozen=True)
class SomeParts:
    """Those parts of a fused tensor that Hugging Face stores; the others are zero in Megatron's.

    kind: of the whole. shapes: of all its parts. stored: the numbers of those that are stored.
    """

    kind: Kind
    shapes: tuple[Shape, ...]
    stored: tuple[int, ...]

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return self.kind.megatron_shape(self.shapes)

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [tensors[0].new_zeros(shape) for shape in self.shapes]
        for number, tensor in zip(self.stored, tensors, strict=True):
            parts[number] = tensor
        return self.kind.to_megatron(parts)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        parts = self.kind.to_hf(tensor)
        return tuple(parts[number] for number in self.stored)


@dataclass(frozen=True)
class Vocabulary:
    """[V, d] -> [padded, d]: zero rows are appended, and dropped again on the way back."""

    rows: int
    padded_rows: int

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return (self.padded_rows, *hf_shapes[0][1:])

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        if self.padded_rows == self.rows:
            return tensor
        padding = tensor.new_zeros(self.padded_rows - self.rows, *tensor.shape[1:])
        return torch.cat([tensor, padding], dim=0)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor[: self.rows],)


@dataclass(frozen=True)
class Reshape:
    """One tensor whose elements keep their order but not their shape (the class token)."""

    hf_shape: Shape
    shape: Shape

    def megatron_shape(self, hf_shapes: Sequence[Shape]) -> Shape:
        return self.shape

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].reshape(self.shape)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor.reshape(self.hf_shape),)


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter and the Hugging Face tensors that it is made of.

    megatron, hf: names, with `{layer}` where the row stands for every layer.
    hf_shapes: the shape of each Hugging Face tensor.
    tensor_parallel: one of TENSOR_PARALLEL_AXES.
    """

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    hf_shapes: tuple[Shape, ...]
    tensor_parallel: str

    def __post_init__(self) -> None:
        assert len(self.hf) == len(self.hf_shapes), self
        assert self.tensor_parallel in TENSOR_PARALLEL_AXES, self

    @property
    def megatron_shape(self) -> Shape:
        return self.kind.megatron_shape(self.hf_shapes)

    def to_megatron(self, tensors: Sequence[Tensor]) -> Tensor:
        """The Megatron parameter made of `tensors`, given in the order of `hf`."""
        return self.kind.to_megatron(tensors)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The Hugging Face tensors, in the order of `hf`."""
        return self.kind.to_hf(tensor)

    def at(self, layer: int) -> Rule:
        return replace(
            self,
            megatron=self.megatron.format(layer=layer),
            hf=tuple(name.format(layer=layer) for name in self.hf),
        )


@dataclass(frozen=True)
class PassThrough:
    """A Hugging Face tensor that the Megatron model lacks, kept so that it can be given back.

    shape None: the tensor may be absent, and its shape is not ours to know. is_buffer: it is no
    parameter, and has a dtype of its own.
    """

    hf: str
    shape: Shape | None
    reason: str
    is_buffer: bool = False


def for_layers(rules: Sequence[Rule], num_layers: int) -> list[Rule]:
    """Every row at every layer 0 .. num_layers - 1, layer by layer."""
    return [rule.at(layer) for layer in range(num_layers) for rule in rules]
