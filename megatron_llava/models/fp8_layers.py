"""Core's transformer layer with linears that multiply in emulated FP8.

Only the four linears of a decoder layer do; norms, attention, embedding, output layer, vision tower
and projector stay as they are, as with Transformer Engine. Communication is core's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_llava.ops.fp8 import CurrentScaling, Fp8Recipe, Fp8Scaling, fp8_linear
from megatron_llava.ops.fp8_delayed import DelayedScales
from megatron_llava.peft.linears import LoraColumnParallelLinear, LoraRowParallelLinear
from megatron_llava.peft.own_product import OwnProduct


class Fp8Linear(OwnProduct):
    """What core's two parallel linears share here: the product, and the state of its scales."""

    scaling: Fp8Scaling | None = None
    """How operands are scaled now."""
    scales: DelayedScales | None = None
    number = 0
    """Which layer of ``scales`` this is."""

    def product(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See OwnProduct."""
        assert self.scaling is not None
        output = fp8_linear(input.flatten(0, -2), weight, self.scaling)
        return output.view(*input.shape[:-1], -1)

    def get_extra_state(self) -> dict[str, torch.Tensor] | None:
        """Scales and history, where they outlive a pass."""
        return None if self.scales is None else self.scales.state_of(self.number)

    def set_extra_state(self, state: Any) -> None:
        """A checkpoint of a run without this emulation has none: scales then start at one."""
        if self.scales is not None and isinstance(state, dict):
            self.scales.load_state_of(self.number, state)


class Fp8ColumnParallelLinear(Fp8Linear, ColumnParallelLinear):
    """A linear whose output columns are split over the tensor-parallel ranks."""


class Fp8RowParallelLinear(Fp8Linear, RowParallelLinear):
    """A linear whose input columns are split over the tensor-parallel ranks."""


class Fp8LoraColumnParallelLinear(Fp8Linear, LoraColumnParallelLinear):
    """The former with an adapter beside it, which is multiplied as it is."""


class Fp8LoraRowParallelLinear(Fp8Linear, LoraRowParallelLinear):
    """Likewise."""


class Fp8TransformerLayer(TransformerLayer):
    """A layer that takes the scales of its microbatch from ``packed_seq_params``.

    They come with the arguments, so that a recomputation of the layer has those of its microbatch,
    however many others have passed since.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As core's."""
        forward_pass = kwargs["packed_seq_params"].fp8_pass
        if forward_pass is not None:
            for linear in self.fp8_linears():
                linear.scaling = forward_pass.scaling_of(linear.number)
        return super().forward(*args, **kwargs)

    def fp8_linears(self) -> tuple[Fp8Linear, ...]:
        """In the order in which they run."""
        attention, mlp = self.self_attention, self.mlp
        return attention.linear_qkv, attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2


def connect_scales(
    decoder: torch.nn.Module, recipe: Fp8Recipe, group: dist.ProcessGroup
) -> DelayedScales | None:
    """Give the FP8 layers of one part of a model their scales.

    Args:
        group: the ranks over which an amax is the largest.

    Returns:
        What has to be told when a microbatch's forward begins and ends; None where nothing
        outlives a pass.
    """
    layers = [layer for layer in decoder.layers if isinstance(layer, Fp8TransformerLayer)]
    linears = [linear for layer in layers for linear in layer.fp8_linears()]
    if recipe.scaling == "tensorwise":
        for linear in linears:
            linear.scaling = CurrentScaling(recipe)
        return None
    if not linears:
        return None
    scales = DelayedScales(recipe, len(linears), linears[0].weight.device, group)
    for number, linear in enumerate(linears):
        linear.scales, linear.number = scales, number
    return scales
