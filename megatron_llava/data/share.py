"""The share of a pack that one rank has, where several ranks work on the same pack.

Context-parallel ranks share its positions. Each sequence of the pack is cut into 2 * C equal
chunks; rank c of C has chunk c and chunk 2 * C - 1 - c, so that causal attention costs every rank
the same. It is the layout that Transformer Engine and Megatron-core's rotary embedding expect.

The same ranks, and with ``--vision-parallel data`` the tensor-parallel ranks beside them, share its
views: each encodes some and sends the others those features that their positions need.

Sizes in shapes: see packed_batch.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megatron_llava.data.max_pooling import with_max_rows
from megatron_llava.data.packed_batch import FeatureExchange, PackedBatch
from megatron_llava.data.row_plan_library import row_planner


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of the ranks with the same packs this one is.

    The ranks that share the views are those of context rank 0 first, then those of rank 1, ...
    """

    context_rank: int = 0
    context_size: int = 1
    view_rank: int = 0
    view_size: int = 1
    """A multiple of the context size."""

    def __post_init__(self) -> None:
        assert self.view_size % self.context_size == 0, self
        assert self.context_of(self.view_rank) == self.context_rank or self.view_size == 1, self

    def context_of(self, view_rank: int) -> int:
        """The context rank of a rank that shares the views."""
        return view_rank // (self.view_size // self.context_size)

    @property
    def sequence_multiple(self) -> int:
        """What the length of every sequence of a pack must be a multiple of."""
        return 2 * self.context_size if self.context_size > 1 else 1


def dealt_views(num_views: int, rank: int, size: int) -> range:
    """The views that a rank encodes: contiguous, and no rank has two more than another.

    A pack without views counts as one view, which is the dummy.
    """
    bounds = _view_bounds(num_views, size)
    return range(int(bounds[rank]), int(bounds[rank + 1]))


def _view_bounds(num_views: int, size: int) -> NDArray[np.int64]:
    """[size + 1], where the share of each rank begins and ends."""
    each, more = divmod(max(num_views, 1), size)
    counts = np.full(size, each, dtype=np.int64)
    counts[:more] += 1
    return np.concatenate(([0], np.cumsum(counts)))


def rows_of_rank(cu_seqlens: NDArray[np.int32], rank: int, size: int) -> NDArray[np.int64]:
    """The positions of a pack that a context-parallel rank holds, in ascending order.

    Args:
        cu_seqlens: [n + 1], lengths that are multiples of 2 * size (of anything where size is 1).
    """
    lengths = np.diff(cu_seqlens)
    if size == 1:
        return np.arange(int(cu_seqlens[-1]), dtype=np.int64)
    assert not (lengths % (2 * size)).any(), (lengths, size)
    within = np.arange(int(cu_seqlens[-1])) - np.repeat(cu_seqlens[:-1], lengths)
    chunk = within // np.repeat(lengths // (2 * size), lengths)
    return np.flatnonzero((chunk == rank) | (chunk == 2 * size - 1 - rank))


def share_of_pack(
    batch: PackedBatch, share: Share, tokens_per_view: int, *, pools_by_max: bool = False
) -> PackedBatch:
    """This rank's share of a pack.

    Its table of rows for ``visual_pack`` holds only what its positions use: the features that it
    receives, in the order of the views, then the special rows, then its own text tokens.

    Args:
        batch: a whole pack, its views being this rank's already.
        tokens_per_view: T.
        pools_by_max: the settings' property of that name.
    """
    if share.view_size == 1:
        return batch
    assert batch.max_taps is None, "rows of maxima are made of a share"
    num_features = max(batch.num_views, 1) * tokens_per_view
    rows = [
        rows_of_rank(batch.cu_seqlens, rank, share.context_size)
        for rank in range(share.context_size)
    ]
    needed = [_features_used(batch.taps[r], batch.weights[r], num_features) for r in rows]
    mine = rows[share.context_rank]
    num_specials = batch.num_table_rows - num_features - len(batch.token_ids)
    taps, token_ids = _own_table(
        batch, mine, needed[share.context_rank], num_features, num_specials
    )
    weights = batch.weights[mine]
    table_rows = len(needed[share.context_rank]) + num_specials + len(token_ids)
    uses = row_planner().transpose(taps, weights, table_rows)
    own_features = needed[share.context_rank]
    has_positions = len(batch.view_bounds) > 0
    place = np.full(len(batch.position_ids), -1, dtype=np.int64)
    place[mine] = np.arange(len(mine))
    loss_rows = place[batch.loss_rows]
    here = loss_rows >= 0
    part = replace(
        batch,
        token_ids=token_ids,
        position_ids=batch.position_ids[mine],
        taps=taps,
        weights=weights,
        csr_offsets=uses.offsets,
        csr_rows=uses.rows,
        csr_weights=uses.weights,
        feature_positions=batch.feature_positions[own_features if has_positions else slice(0)],
        view_bounds=np.searchsorted(own_features, batch.view_bounds),
        loss_rows=loss_rows[here],
        loss_labels=batch.loss_labels[here],
        loss_samples=batch.loss_samples[here],
        loss_origins=None if batch.loss_origins is None else batch.loss_origins[here],
        counts_samples=share.context_rank == 0,
        row_order=np.concatenate(rows) if share.context_size > 1 else None,
        exchange=_exchange(needed, share, batch.num_views, tokens_per_view),
    )
    return with_max_rows(part, len(own_features), row_planner()) if pools_by_max else part


def _features_used(
    taps: NDArray[np.int64], weights: NDArray[np.float32], num_features: int
) -> NDArray[np.int64]:
    """Feature rows that some position uses, ascending; the first one where none is used, so that
    every rank takes part in every layer of the projector."""
    used = np.unique(taps[(weights != 0) & (taps < num_features)])
    return used if len(used) else np.zeros(1, dtype=np.int64)


def _own_table(
    batch: PackedBatch,
    rows: NDArray[np.int64],
    needed: NDArray[np.int64],
    num_features: int,
    num_specials: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Taps of the given rows into a table of the needed features, the special rows and their own
    text tokens, and those tokens (one that no row uses, where there are none)."""
    old, used = batch.taps[rows], batch.weights[rows] != 0
    first_text = num_features + num_specials
    text, feature = used & (old >= first_text), used & (old < num_features)
    special = used & (old >= num_features) & (old < first_text)
    taps = np.zeros_like(old)
    taps[feature] = np.searchsorted(needed, old[feature])
    taps[special] = len(needed) + old[special] - num_features
    taps[text] = len(needed) + num_specials + np.arange(np.count_nonzero(text))
    token_ids = batch.token_ids[old[text] - first_text]
    return taps, token_ids if len(token_ids) else np.zeros(1, dtype=np.int64)


def _exchange(
    needed: list[NDArray[np.int64]], share: Share, num_views: int, tokens_per_view: int
) -> FeatureExchange:
    """What this rank sends to each rank that shares the views, and what it gets from each."""
    bounds = _view_bounds(num_views, share.view_size) * tokens_per_view
    own = bounds[share.view_rank : share.view_rank + 2]
    sent = []
    for receiver in range(share.view_size):
        wanted = needed[share.context_of(receiver)]
        first, last = np.searchsorted(wanted, own)
        sent.append(wanted[first:last] - own[0])
    received = np.diff(np.searchsorted(needed[share.context_rank], bounds))
    return FeatureExchange(
        send_rows=np.concatenate(sent),
        send_counts=tuple(len(part) for part in sent),
        receive_counts=tuple(received.tolist()),
    )
