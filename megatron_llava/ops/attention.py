"""Attention over packed sequences without Transformer Engine, and over equally long dense ones.

Shape suffixes: T packed rows, N query heads, G key/value heads (query groups), D head channels,
S sequence length, B batch, P sequences in the pack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron_llava.ops import varlen

_PADDED_BATCH_WASTE = 1.5
"""Packs are run as one padded batch while padding costs less than this factor in rows."""


def dense_attention(
    query_SBND: torch.Tensor,
    key_SBGD: torch.Tensor,
    value_SBGD: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """Attention within each of B sequences of one length.

    Returns:
        [S, B, N * D] in the dtype of the query.
    """
    out_BNSD = _sdpa(
        query_SBND.permute(1, 2, 0, 3),
        key_SBGD.permute(1, 2, 0, 3),
        value_SBGD.permute(1, 2, 0, 3),
        causal=causal,
        scale=scale,
    )
    return out_BNSD.permute(2, 0, 1, 3).flatten(2)


def packed_attention(
    query_TND: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    causal: bool,
    scale: float,
    backend: str = "auto",
) -> torch.Tensor:
    """Attention within each sequence of a pack; rows of different sequences never meet.

    Args:
        cu_seqlens: int32 [P + 1], cumulative sequence lengths from 0 to T.
        max_seqlen: the longest sequence, rows.
        backend: ``--attention-backend``. "unfused" computes sequence by sequence. The others take a
            variable-length kernel where one is (CUDA and no float32): that of flash-attn if it is
            installed and "local" does not rule it out, else torch's.

    Returns:
        [T, N * D] in the dtype of the query.
    """
    assert query_TND.dim() == 3, "a pack has no batch dimension"
    kernel = _varlen_kernel(query_TND.is_cuda, query_TND.dtype, backend)
    if kernel is not None:
        out_TND = kernel(query_TND, key_TGD, value_TGD, cu_seqlens, max_seqlen, causal, scale)
        return out_TND.flatten(1)
    bounds = cu_seqlens.tolist()
    assert bounds[-1] == query_TND.shape[0], (
        f"cu_seqlens end at {bounds[-1]}, rows {len(query_TND)}"
    )
    sequences = len(bounds) - 1
    if causal and sequences > 1 and sequences * max_seqlen <= _PADDED_BATCH_WASTE * bounds[-1]:
        return _padded_batch(query_TND, key_TGD, value_TGD, cu_seqlens, max_seqlen, scale)
    outputs = [
        dense_attention(
            query_TND[start:end, None],
            key_TGD[start:end, None],
            value_TGD[start:end, None],
            causal=causal,
            scale=scale,
        )[:, 0]
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(outputs)


def _varlen_kernel(
    is_cuda: bool, dtype: torch.dtype, backend: str
) -> Callable[..., torch.Tensor] | None:
    """The kernel that takes packs as they are, None where there is none or none is wanted."""
    if not is_cuda or dtype == torch.float32 or backend == "unfused":
        return None
    if backend != "local" and varlen.has_flash_attn():
        return varlen.flash_attn_varlen
    return varlen.torch_varlen


def _padded_batch(
    query_TND: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention as one right-padded batch: no row attends to the padding behind it."""
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    rows = torch.arange(query_TND.shape[0], device=query_TND.device)
    starts = torch.repeat_interleave(cu_seqlens[:-1].long(), lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)
    slot = sequence * max_seqlen + rows - starts
    shape = (len(lengths), max_seqlen)

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.new_zeros(shape[0] * shape[1], *tensor.shape[1:])
        return flat.index_copy(0, slot, tensor).unflatten(0, shape).transpose(1, 2)

    out_PNSD = _sdpa(
        padded(query_TND), padded(key_TGD), padded(value_TGD), causal=True, scale=scale
    )
    return out_PNSD.transpose(1, 2).flatten(0, 1).index_select(0, slot).flatten(1)


def _sdpa(
    query_BNSD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """torch's attention with each key/value head shared by N / G query heads."""
    repeats = query_BNSD.shape[1] // key_BGSD.shape[1]
    if repeats > 1:
        key_BGSD = key_BGSD.repeat_interleave(repeats, dim=1)
        value_BGSD = value_BGSD.repeat_interleave(repeats, dim=1)
    return F.scaled_dot_product_attention(
        query_BNSD, key_BGSD, value_BGSD, is_causal=causal, scale=scale
    )
