"""Matrix products in FP8, as Transformer Engine scales and rounds them, on torch alone.

A tensor is multiplied by a float32 scale, rounded to the nearest FP8 number (what is too large
becomes the largest one), multiplied in float32, and divided by the scales. The formulas are those
of Transformer Engine's FP8 primer and of its delayed and current scaling recipes. ``hybrid`` is
E4M3 (up to 448) for inputs and weights and E5M2 (up to 57344) for the gradients of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class Fp8Recipe:
    """Number formats, and how scales follow from the largest magnitudes (amax)."""

    format: Literal["e4m3", "hybrid"] = "hybrid"
    scaling: Literal["delayed", "tensorwise"] = "delayed"
    margin: int = 0
    """Scales are lower by 2 ** margin than what just fits."""
    amax_history_len: int = 1
    amax_compute_algo: Literal["most_recent", "max"] = "most_recent"

    @property
    def forward_dtype(self) -> torch.dtype:
        """Of inputs and weights."""
        return torch.float8_e4m3fn

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the gradients of outputs."""
        return torch.float8_e5m2 if self.format == "hybrid" else torch.float8_e4m3fn


class Fp8Scaling(Protocol):
    """Rounds the three operands of a linear layer; each gives (FP8 values, 1 / scale)."""

    def quantize_input(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def quantize_weight(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def quantize_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def end_backward(self) -> None:
        """The layer has its gradients."""


def largest_magnitude(x: torch.Tensor) -> torch.Tensor:
    """The amax of ``x``: float32 scalar; passes over numbers that are none, as a GPU's max does."""
    magnitude = x.detach().abs().float()
    return magnitude.nan_to_num(nan=0.0, posinf=torch.inf).amax()


def scale_of(
    amax: torch.Tensor, previous: torch.Tensor, dtype: torch.dtype, margin: int
) -> torch.Tensor:
    """What a tensor is multiplied by: the largest FP8 number / amax / 2 ** margin, float32.

    An amax of zero or infinity says nothing: ``previous`` stays. A scale beyond float32 is its
    largest number.
    """
    scale = torch.finfo(dtype).max * 2.0**-margin / amax
    says_something = amax.isfinite() & (amax > 0)
    return torch.where(says_something, scale.clamp(max=torch.finfo(torch.float32).max), previous)


def quantize(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x * scale`` rounded to FP8; what is beyond its range becomes its largest number."""
    largest = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-largest, largest).to(dtype)


def scaled_product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_inverse: torch.Tensor,
    b_inverse: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``(a * a_inverse) @ (b * b_inverse).T`` in ``dtype``, summed in float32.

    ``torch._scaled_mm`` has every combination of the two formats on a CPU, where it multiplies
    float32 copies. A GPU below compute capability 8.9 has none: float32 copies are multiplied here.

    Args:
        a: FP8 [M, K]. b: FP8 [N, K]. On a GPU the sizes must be multiples of 16.
        a_inverse: float32 scalar. b_inverse: likewise.
    """
    if a.is_cuda and torch.cuda.get_device_capability(a.device) < (8, 9):
        return ((a.float() * a_inverse) @ (b.float() * b_inverse).t()).to(dtype)
    a, b = a.contiguous(), b.contiguous()
    return torch._scaled_mm(a, b.t(), scale_a=a_inverse, scale_b=b_inverse, out_dtype=dtype)


class CurrentScaling:
    """The ``tensorwise`` recipe: each tensor is scaled by its own amax."""

    def __init__(self, recipe: Fp8Recipe) -> None:
        self.recipe = recipe

    def quantize_input(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Fp8Scaling``."""
        return self._quantize(x, self.recipe.forward_dtype)

    def quantize_weight(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Fp8Scaling``."""
        return self._quantize(x, self.recipe.forward_dtype)

    def quantize_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Fp8Scaling``."""
        return self._quantize(x, self.recipe.gradient_dtype)

    def end_backward(self) -> None:
        """Nothing is kept."""

    def _quantize(self, x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        amax = largest_magnitude(x)
        scale = scale_of(amax, torch.ones_like(amax), dtype, margin=0)
        return quantize(x, scale, dtype), scale.reciprocal()


class _Fp8Linear(torch.autograd.Function):
    """See ``fp8_linear``."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        scaling: Fp8Scaling,
    ) -> torch.Tensor:
        x8, x_inverse = scaling.quantize_input(x)
        w8, w_inverse = scaling.quantize_weight(weight)
        ctx.save_for_backward(x8, x_inverse, w8, w_inverse)
        ctx.scaling, ctx.dtypes = scaling, (x.dtype, weight.dtype)
        return scaled_product(x8, w8, x_inverse, w_inverse, x.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x8, x_inverse, w8, w_inverse = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        g8, g_inverse = ctx.scaling.quantize_gradient(gradient)
        x_gradient = w_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = scaled_product(g8, w8.t(), g_inverse, w_inverse, x_dtype)
        if ctx.needs_input_grad[1]:
            w_gradient = scaled_product(g8.t(), x8.t(), g_inverse, x_inverse, w_dtype)
        ctx.scaling.end_backward()
        return x_gradient, w_gradient, None


def fp8_linear(x: torch.Tensor, weight: torch.Tensor, scaling: Fp8Scaling) -> torch.Tensor:
    """``x @ weight.T`` whose three products, forward and backward, are of FP8 operands.

    The backward uses the rounded input and weight of the forward, as Transformer Engine does.

    Args:
        x: [M, K], bfloat16 or float32. weight: [N, K].
        scaling: how operands are scaled.

    Returns:
        [M, N] in the dtype of ``x``.
    """
    return _Fp8Linear.apply(x, weight, scaling)
