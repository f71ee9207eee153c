"""What one microbatch holds, as far as it decides how much is sent."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.data.packed_batch import TensorBatch


@dataclass(frozen=True, kw_only=True)
class MicrobatchSizes:
    """What one microbatch holds on one rank; context-parallel ranks count their own share."""

    rows: int
    """Positions, padding included."""

    text_tokens: int
    loss_rows: int
    """At least 1."""

    views: int
    """Views that the rank encodes: at least 1, on later pipeline stages 0."""

    tile_bytes: int
    """Bytes of their pixels."""

    features: int
    """Rows that the projector takes: of all views, or what the rank receives of shared ones."""

    features_sent: int = 0
    """Rows of shared views that other ranks are sent."""

    features_received: int = 0
    """Rows of shared views that other ranks send."""

    frames: int = 1
    """Of the videos of the pack, at least 1."""

    samples: int = 1
    """Of the pack."""


def microbatch_sizes(batch: TensorBatch, rank: int, patches: int) -> MicrobatchSizes:
    """The sizes of a batch.

    Args:
        batch: this rank's share of a pack, with tiles on the first pipeline stage.
        rank: this rank among those that share the views.
        patches: feature rows of one view.
    """
    tiles, exchange = batch.tiles, batch.exchange
    views = len(tiles) if tiles is not None else 0
    features = views * patches
    sent = received = 0
    if exchange is not None:
        features = sum(exchange.receive_counts)
        sent = sum(exchange.send_counts) - exchange.send_counts[rank]
        received = features - exchange.receive_counts[rank]
    return MicrobatchSizes(
        rows=len(batch.position_ids),
        text_tokens=len(batch.token_ids),
        loss_rows=max(len(batch.loss_rows), 1),
        views=views,
        tile_bytes=tiles.numel() if tiles is not None else 0,
        features=features,
        features_sent=sent,
        features_received=received,
        frames=PackSizes.of(batch).frames,
        samples=batch.num_samples,
    )
