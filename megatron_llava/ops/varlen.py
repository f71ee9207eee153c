"""Variable-length attention kernels of others: torch's own and flash-attn's (CUDA, bf16 or fp16).

Shape suffixes: T packed rows, N query heads, G key/value heads, D head channels, P sequences.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from inspect import signature

import torch


@cache
def has_flash_attn() -> bool:
    """Whether the package flash-attn is installed."""
    return find_spec("flash_attn") is not None


def flash_attn_varlen(
    query_TND: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """flash-attn's kernel; [T, N, D]."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query_TND,
        key_TGD,
        value_TGD,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        softmax_scale=scale,
        causal=causal,
    )


def torch_varlen(
    query_TND: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """torch's kernel; [T, N, D]. Before torch 2.13 it wants as many key/value heads as queries."""
    from torch.nn.attention.varlen import varlen_attn

    more = {}
    repeats = query_TND.shape[1] // key_TGD.shape[1]
    if repeats > 1 and "enable_gqa" in signature(varlen_attn).parameters:
        more["enable_gqa"] = True
    elif repeats > 1:
        key_TGD = key_TGD.repeat_interleave(repeats, dim=1)
        value_TGD = value_TGD.repeat_interleave(repeats, dim=1)
    return varlen_attn(
        query_TND,
        key_TGD,
        value_TGD,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        **more,
    )
