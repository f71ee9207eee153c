"""One microbatch: a pack of samples, or the share of it that a rank has.

Sizes in shapes: R positions with padding, N text tokens, V views, T tokens per view, S pixels per
side of a view, L positions with a loss, n sequences in cu_seqlens, g ranks that share the views, M
rows of the virtual table, U uses of them (weights that are not 0).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_llava.data.sample_kinds import KindCounts


@dataclass(frozen=True, kw_only=True)
class FeatureExchange:
    """Which of its features a rank sends to the others of its group, and how many it gets."""

    send_rows: Any
    """int64 rows of this rank's own features, for one receiver after the other; an array on the
    host, a tensor on a device."""

    send_counts: tuple[int, ...]
    """[g], how many of them go to each rank."""

    receive_counts: tuple[int, ...]
    """[g], how many rows come from each rank."""

    def to_torch(self, device: torch.device | str) -> FeatureExchange:
        """The same with ``send_rows`` as a tensor on a device."""
        rows = torch.from_numpy(self.send_rows).to(device, non_blocking=True)
        return replace(self, send_rows=rows)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One microbatch on the host."""

    token_ids: NDArray[np.int64]
    """[N], text tokens in pack order; images and padding have none."""

    position_ids: NDArray[np.int64]
    """[R], from 0 in each sample and in the padding."""

    cu_seqlens: NDArray[np.int32]
    """[n + 1], start of each sample, then of the padding if there is any, then the end of the pack;
    of the whole pack, also in a share of it."""

    max_seqlen: int
    """Longest difference of cu_seqlens."""

    loss_rows: NDArray[np.int64]
    """[L], positions whose next position in the same sample is a supervised text token."""

    loss_labels: NDArray[np.int64]
    """[L], those tokens."""

    loss_samples: NDArray[np.int64]
    """[L], the sample of the pack that each belongs to."""

    loss_origins: NDArray[np.int64] | None = None
    """[L, 2], the sample's number in the store, and the place of the position among all with a loss
    of that sample; None where nothing asks."""

    sample_loss_tokens: NDArray[np.int64]
    """[num_samples], supervised tokens of each sample of the whole pack."""

    counts_samples: bool = True
    """Off where another context-parallel rank with a share of this pack counts its samples."""

    taps: NDArray[np.int64]
    """[R, 4], rows of the virtual table; unused taps are 0."""

    weights: NDArray[np.float32]
    """[R, 4], 0 for unused taps and in the padding."""

    csr_offsets: NDArray[np.int64]
    """[M + 1], the uses of row t of the virtual table are csr_offsets[t] to csr_offsets[t + 1]."""

    csr_rows: NDArray[np.int64]
    """[U], position of each use; ordered by table row, position, tap."""

    csr_weights: NDArray[np.float32]
    """[U], weight of each use."""

    feature_positions: NDArray[np.int64]
    """[F], the position of each feature's tile, -1 for none; [0] where positions are off."""

    view_bounds: NDArray[np.int64]
    """[V + 1], this rank's features of view v are view_bounds[v] to view_bounds[v + 1]; [0] where
    positions are off."""

    tiles: NDArray[np.uint8] | None
    """[v, 3, S, S], v views of this rank's share, a zero view where that is empty; None without
    pixels. The share of a rank alone are all V views."""

    num_samples: int

    sample_kinds: KindCounts
    """Samples of the whole pack by kind."""

    num_images: int
    num_views: int
    """V: 0 where the pack has no image."""

    sample_views: tuple[int, ...]
    """[num_samples], views of each sample of the whole pack."""

    videos: tuple[tuple[int, int], ...]
    """[num_videos], the first view and the frames of each video of the whole pack."""

    num_rows: int
    """Positions before padding."""

    attended: int
    """Sum of the squared positions of each sample before padding."""

    num_loss_rows: int
    """Positions with a loss of the whole pack, also in a share of it."""

    max_taps: NDArray[np.int64] | None = None
    """[M', 4], the features that rows F to F + M' of the virtual table are the largest of, element
    by element; None where no token is one."""

    row_order: NDArray[np.int64] | None = None
    """[pack's rows], the positions that the context-parallel ranks hold, rank after rank; None
    where this is a whole pack."""

    exchange: FeatureExchange | None = None
    """How ranks that share the views give each other features; None where none do."""

    @property
    def num_table_rows(self) -> int:
        """M, rows of the virtual table: features, special rows, text tokens."""
        return len(self.csr_offsets) - 1

    def to_torch(self, device: torch.device | str = "cpu") -> TensorBatch:
        """The same batch as tensors on a device, without a copy where that is possible."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["exchange"] = self.exchange and self.exchange.to_torch(device)
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = torch.from_numpy(value).to(device, non_blocking=True)
        return TensorBatch(**values)


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A PackedBatch on a device; fields and shapes are its."""

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    loss_rows: torch.Tensor
    loss_labels: torch.Tensor
    taps: torch.Tensor
    weights: torch.Tensor
    csr_offsets: torch.Tensor
    csr_rows: torch.Tensor
    csr_weights: torch.Tensor
    feature_positions: torch.Tensor
    view_bounds: torch.Tensor
    tiles: torch.Tensor | None
    loss_samples: torch.Tensor
    loss_origins: torch.Tensor | None
    sample_loss_tokens: torch.Tensor
    counts_samples: bool
    num_samples: int
    sample_kinds: KindCounts
    num_images: int
    num_views: int
    sample_views: tuple[int, ...]
    videos: tuple[tuple[int, int], ...]
    num_rows: int
    attended: int
    num_loss_rows: int
    max_taps: torch.Tensor | None
    row_order: torch.Tensor | None
    exchange: FeatureExchange | None
