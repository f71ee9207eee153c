"""The compiled operators: their formulas for gradients, and their shapes for tracing.

csrc/torch_operators.cpp has the operators themselves.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_llava.platform.extension import cuda_archs, load_operators

# Constants, so that torch.compile sees through `compiled_for`.
_DEVICES = ("cpu", "cuda") if cuda_archs() else ("cpu",)
_COMPILED = load_operators()


def compiled_for(tensor: torch.Tensor) -> bool:
    """Whether ``torch.ops.megatron_llava`` can work on this tensor's device."""
    return _COMPILED and tensor.device.type in _DEVICES


def plain_torch_remark(device: str) -> str | None:
    """What to tell the user where a device has no compiled operators, None where it has them."""
    if _COMPILED and device in _DEVICES:
        return None
    reason = "nvcc" if _COMPILED else "a C++ compiler and torch"
    return (
        "visual packing runs in plain torch, which is slower: megatron_llava was installed without "
        f"{reason}; install it again where they are"
    )


def _packed_rows(
    features: torch.Tensor,
    specials: torch.Tensor,
    text: torch.Tensor,
    positions: torch.Tensor,
    taps: torch.Tensor,
    *rest_of_plan: torch.Tensor,
) -> torch.Tensor:
    return features.new_empty(taps.shape[0], features.shape[1])


def _table_gradients(
    grad: torch.Tensor,
    csr_offsets: torch.Tensor,
    csr_rows: torch.Tensor,
    csr_weights: torch.Tensor,
    feature_positions: torch.Tensor,
    view_bounds: torch.Tensor,
    num_features: int,
    num_specials: int,
    num_positions: int,
    wants_features: bool,
    wants_specials: bool,
    wants_text: bool,
    wants_positions: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A gradient that is not wanted has no rows."""
    num_text = csr_offsets.shape[0] - 1 - num_features - num_specials
    hidden = grad.shape[1]
    return (
        grad.new_empty(num_features if wants_features else 0, hidden),
        grad.new_empty(num_specials if wants_specials else 0, hidden),
        grad.new_empty(num_text if wants_text else 0, hidden),
        grad.new_empty(num_positions if wants_positions else 0, hidden),
    )


def _patch_rows(tiles: torch.Tensor, table: torch.Tensor, patch: int) -> torch.Tensor:
    views, channels, side, _ = tiles.shape
    return table.new_empty(views, (side // patch) ** 2, channels * patch * patch)


def _save_plan(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    features, specials, _, positions, _, _, *rest_of_plan = inputs
    ctx.save_for_backward(*rest_of_plan)
    ctx.rows = features.shape[0], specials.shape[0], positions.shape[0]


def _visual_pack_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:4]
    gradients = torch.ops.megatron_llava.visual_pack_backward(
        grad.contiguous(), *ctx.saved_tensors, *ctx.rows, *wanted
    )
    tables = [g if want else None for g, want in zip(gradients, wanted, strict=True)]
    return *tables, *[None] * (len(ctx.needs_input_grad) - len(tables))


if _COMPILED:
    torch.library.register_fake("megatron_llava::visual_pack", _packed_rows)
    torch.library.register_fake("megatron_llava::visual_pack_backward", _table_gradients)
    torch.library.register_fake("megatron_llava::tiles_to_patches", _patch_rows)
    torch.library.register_autograd(
        "megatron_llava::visual_pack", _visual_pack_backward, setup_context=_save_plan
    )
