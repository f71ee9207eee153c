"""Core's parallel linears with an adapter beside the frozen weight.

The weight keeps its name, so that a checkpoint without adapters loads, and the adapter is the
module ``lora`` of the linear. Only rank-wide tensors are communicated for it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_llava.config.lora import LoraConfig, targeted_parts
from megatron_llava.peft.adapter import Adapter, drawn_a
from megatron_llava.peft.targets import part_mask, part_of_outputs


class LoraColumnParallelLinear(ColumnParallelLinear):
    """``linear_qkv`` or ``linear_fc1`` with an adapter: B is split as the weight, A is not.

    Args:
        lora: of the adapter.
        name: which of the two linears this is.
    """

    def __init__(
        self, *sizes: int, config: TransformerConfig, lora: LoraConfig, name: str, **options: Any
    ) -> None:
        super().__init__(*sizes, config=config, **options)
        self.name, self.parts = name, targeted_parts(name, lora.lora_target_modules)
        outputs, rank = self.weight.shape[0], self.tp_group.rank()
        part_of_output = part_of_outputs(name, config, outputs, rank)
        self.lora = _adapter(lora, name, part_of_output, self.input_size, config)
        # Each rank has a share of the positions and with them of A's gradient.
        self.lora.a.sequence_parallel = self.sequence_parallel
        set_tensor_model_parallel_attributes(self.lora.b, True, 0, 1)

    def forward(
        self, input_: torch.Tensor, *more: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What core's linear gives for [rows, B, inputs], and the adapter's product added to it."""
        output, bias = super().forward(input_, *more, **options)
        return output + self.lora(input_, self._exchange), bias

    def _exchange(self, low: torch.Tensor) -> torch.Tensor:
        """All positions for this rank's rows of B, and back the gradients of all ranks."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(low, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(low, group=self.tp_group)

    def draw(self, seed: int, layer: int) -> None:
        """Start the adapter of a layer, numbered from 1."""
        _draw(self.lora, self.parts, seed, layer, slice(None), self.input_size)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Core's description of the weight under its own name, and of the adapter."""
        split = {"weight": 0, "bias": 0, "lora.b": 0}
        state = _sharded(self, prefix, split, sharded_offsets, metadata)
        if self.name == "linear_fc1":
            key = f"{prefix}lora.b"
            # The gate and the input half, each split on its own; core does it for the weight only.
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state


class LoraRowParallelLinear(RowParallelLinear):
    """``linear_proj`` or ``linear_fc2`` with an adapter: A is split as the weight, B is not.

    Args:
        lora: of the adapter.
        name: which of the two linears this is.
    """

    def __init__(
        self, *sizes: int, config: TransformerConfig, lora: LoraConfig, name: str, **options: Any
    ) -> None:
        super().__init__(*sizes, config=config, **options)
        self.name, self.parts = name, targeted_parts(name, lora.lora_target_modules)
        outputs, inputs = self.weight.shape
        part_of_output = part_of_outputs(name, config, outputs, 0)
        self.lora = _adapter(lora, name, part_of_output, inputs, config)
        self.lora.b.sequence_parallel = self.sequence_parallel
        set_tensor_model_parallel_attributes(self.lora.a, True, 2, 1)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What core's linear gives for [rows, B, inputs], and the adapter's product added to it."""
        output, bias = super().forward(input_)
        with self._random_of_rank():
            return output + self.lora(input_, self._exchange), bias

    def _exchange(self, low: torch.Tensor) -> torch.Tensor:
        """The ranks' summands added up, of this rank's positions."""
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(low, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(low, group=self.tp_group)

    def _random_of_rank(self) -> AbstractContextManager[None]:
        """Random numbers that differ among the ranks, which hold different inputs.

        With sequence parallelism core's transformer block has switched to them already.
        """
        draws = self.training and self.lora.dropout > 0
        return (
            get_cuda_rng_tracker().fork() if draws and not self.sequence_parallel else nullcontext()
        )

    def draw(self, seed: int, layer: int) -> None:
        """Start the adapter of a layer, numbered from 1."""
        first = self.tp_group.rank() * self.input_size_per_partition
        share = slice(first, first + self.input_size_per_partition)
        _draw(self.lora, self.parts, seed, layer, share, self.input_size)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Core's description of the weight under its own name, and of the adapter."""
        return _sharded(self, prefix, {"weight": 1, "lora.a": 2}, sharded_offsets, metadata)


LoraLinear = LoraColumnParallelLinear | LoraRowParallelLinear


def _adapter(
    lora: LoraConfig, name: str, part_of_output: list[int], inputs: int, config: TransformerConfig
) -> Adapter:
    return Adapter(
        lora.lora_rank,
        inputs,
        part_mask(name, lora.lora_target_modules, part_of_output),
        scaling=lora.scaling,
        dropout=lora.lora_dropout,
        dtype=config.params_dtype,
    )


@torch.no_grad()
def _draw(
    adapter: Adapter, parts: tuple[str, ...], seed: int, layer: int, share: slice, inputs: int
) -> None:
    """Draw every part's A, of which this rank holds a share of the inputs."""
    rank = adapter.a.shape[1]
    for own, part in zip(adapter.a, parts, strict=True):
        own.copy_(drawn_a(rank, inputs, seed, layer, part)[:, share])


def _sharded(
    linear: LoraLinear,
    prefix: str,
    split_axes: dict[str, int],
    sharded_offsets: tuple,
    metadata: dict | None,
) -> dict[str, Any]:
    """Core's description of a linear whose tensors are split along the given axes."""
    assert metadata is not None
    return make_sharded_tensors_for_checkpoint(
        linear.state_dict(prefix="", keep_vars=True),
        prefix,
        split_axes,
        sharded_offsets,
        tp_group=linear.tp_group,
        dp_cp_group=metadata["dp_cp_group"],
    )
