"""Delayed scaling: the scales of this pass come from the largest magnitudes of earlier passes.

As in Transformer Engine, a *pass* is one microbatch's forward through a part of the model, or its
backward, and not an optimizer step. At the end of a forward that records gradients, the amax of
every input and weight is reduced to the maximum over the ranks, put before the history, and new
scales follow; at the end of a backward, when the part's first layer has its gradients, likewise
those of the gradients. Weights are rounded in a step's first pass only and kept for the others,
whose amax of them is a zero in the history. A forward without gradients (validation, generation)
uses the scales and changes nothing; Transformer Engine counts its magnitudes to those of the next
pass. Scales start at one. A step that is skipped because a number in it is none has moved them, as
it has there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from megatron_llava.ops.fp8 import Fp8Recipe, largest_magnitude, quantize, scale_of

_INPUT, _WEIGHT, _GRADIENT = range(3)
_FORWARD, _BACKWARD = slice(0, 2), slice(2, 3)


class DelayedScales:
    """Scales and histories of the linear layers of one part of the model, N of them.

    Args:
        group: ranks whose tensors share a scale; None for this one alone.
    """

    def __init__(
        self,
        recipe: Fp8Recipe,
        layers: int,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.recipe, self.group = recipe, group
        self.scales = torch.ones(layers, 3, device=device)
        """float32 [N, 3]: of the input, the weight and the gradient of the output."""
        self.history = torch.zeros(recipe.amax_history_len, layers, 3, device=device)
        """float32 [H, N, 3], the newest amax first."""
        self.gradient_amaxes = torch.zeros(layers, 1, device=device)
        self.weights: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
        """Of each layer the rounded weight and 1 / scale; None outside of a step."""

    def begin_step(self) -> None:
        """Weights stay as they are until ``end_step``."""
        self.weights = {}

    def end_step(self) -> None:
        """Weights may change."""
        self.weights = None

    def begin_forward(self) -> ForwardPass:
        """The scales of the microbatch that starts now."""
        return ForwardPass(self)

    def end_forward(self, forward_pass: ForwardPass) -> None:
        """Take the magnitudes of a microbatch in; a collective over the group."""
        if torch.is_grad_enabled():
            self._update(forward_pass.amaxes, _FORWARD)

    def end_backward(self) -> None:
        """Take the magnitudes of a microbatch's gradients in; a collective over the group."""
        self._update(self.gradient_amaxes, _BACKWARD)
        self.gradient_amaxes.zero_()

    def _update(self, amaxes: torch.Tensor, columns: slice) -> None:
        if self.group is not None and self.group.size() > 1:
            dist.all_reduce(amaxes, dist.ReduceOp.MAX, group=self.group)
        history = self.history[:, :, columns]
        history.copy_(torch.cat((amaxes[None], history[:-1])))
        amax = history.amax(0) if self.recipe.amax_compute_algo == "max" else amaxes
        forward = columns == _FORWARD
        dtype = self.recipe.forward_dtype if forward else self.recipe.gradient_dtype
        scales = self.scales[:, columns]
        scales.copy_(scale_of(amax, scales, dtype, self.recipe.margin))

    def state_of(self, layer: int) -> dict[str, torch.Tensor]:
        """What a checkpoint holds of a layer: ``scales`` [3] and ``amax_history`` [H, 3]."""
        return {
            "scales": self.scales[layer].cpu().clone(),
            "amax_history": self.history[:, layer].cpu().clone(),
        }

    def load_state_of(self, layer: int, state: dict[str, Any]) -> None:
        """Take up ``state_of``; of a history of another length as much as there is room for."""
        self.scales[layer] = state["scales"].to(self.scales.device)
        kept = state["amax_history"][: len(self.history)].to(self.history.device)
        self.history[:, layer] = 0.0
        self.history[: len(kept), layer] = kept


class ForwardPass:
    """The scales of one microbatch, which a recomputation of its layers uses again.

    The magnitudes that a recomputation records come after ``end_forward`` and are not looked at.
    """

    def __init__(self, state: DelayedScales) -> None:
        self.state = state
        self.scales = state.scales.clone()
        self.amaxes = torch.zeros_like(state.scales[:, _FORWARD])
        self.weights = state.weights if torch.is_grad_enabled() else None

    def scaling_of(self, layer: int) -> DelayedScaling:
        """How a layer rounds its operands for this microbatch."""
        return DelayedScaling(self, layer)


class DelayedScaling:
    """One layer's ``Fp8Scaling`` for one microbatch."""

    def __init__(self, forward_pass: ForwardPass, layer: int) -> None:
        self.forward_pass, self.layer = forward_pass, layer

    def quantize_input(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Fp8Scaling``."""
        return self._quantize_forward(x, _INPUT)

    def quantize_weight(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Fp8Scaling``; the same for all passes of a step."""
        weights = self.forward_pass.weights
        if weights is None:
            return self._quantize_forward(x, _WEIGHT)
        if self.layer not in weights:
            weights[self.layer] = self._quantize_forward(x, _WEIGHT)
        return weights[self.layer]

    def quantize_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """By the scale of when the backward runs: other microbatches' may have been in between."""
        state = self.forward_pass.state
        _record(state.gradient_amaxes[self.layer, 0], x)
        scale = state.scales[self.layer, _GRADIENT].clone()
        return quantize(x, scale, state.recipe.gradient_dtype), scale.reciprocal()

    def end_backward(self) -> None:
        """The first layer is the last one in a backward."""
        if self.layer == 0:
            self.forward_pass.state.end_backward()

    def _quantize_forward(self, x: torch.Tensor, operand: int) -> tuple[torch.Tensor, torch.Tensor]:
        forward_pass = self.forward_pass
        _record(forward_pass.amaxes[self.layer, operand], x)
        scale = forward_pass.scales[self.layer, operand]
        dtype = forward_pass.state.recipe.forward_dtype
        return quantize(x, scale, dtype), scale.reciprocal()


def _record(amax: torch.Tensor, x: torch.Tensor) -> None:
    """Raise ``amax`` to that of ``x``, in place."""
    amax.copy_(torch.maximum(amax, largest_magnitude(x)))
