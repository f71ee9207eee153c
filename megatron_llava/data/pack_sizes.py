"""What some packs of a run hold together: how much work they are for each part of the model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_llava.data.packed_batch import PackedBatch, TensorBatch


@dataclass(frozen=True, kw_only=True)
class PackSizes:
    """Sums over some packs, padding left out. Integers: every rank finds the same."""

    packs: int

    views: int
    """Views that the tower encodes; the dummy view of a pack without images is one."""

    rows: int
    """Positions of the decoder."""

    attended: int
    """Sum of the squared length of each sample: causal attention computes half as many scores."""

    loss_rows: int
    """Positions that the output layer computes; one where a pack has none."""

    view_pairs: int = 0
    """Sum of the squared views of each sample; the dummy view of a pack without images is one."""

    frames: int = 0
    """Of videos; one of zeros in a pack without a video."""

    frame_pairs: int = 0
    """Sum of the squared frames of each video, likewise."""

    sample_rows: int = 0
    """Sum over the packs of samples times positions."""

    sample_labels: int = 0
    """Sum over the packs of samples times positions with a loss."""

    @classmethod
    def of(cls, batch: PackedBatch | TensorBatch) -> PackSizes:
        """Of one pack; of all of it also where the batch is a rank's share."""
        return cls(
            packs=1,
            views=max(batch.num_views, 1),
            rows=batch.num_rows,
            attended=batch.attended,
            loss_rows=max(batch.num_loss_rows, 1),
            view_pairs=max(sum(views**2 for views in batch.sample_views), 1),
            frames=max(sum(frames for _, frames in batch.videos), 1),
            frame_pairs=max(sum(frames**2 for _, frames in batch.videos), 1),
            sample_rows=batch.num_samples * batch.num_rows,
            sample_labels=batch.num_samples * batch.num_loss_rows,
        )

    def __add__(self, other: PackSizes) -> PackSizes:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return PackSizes(**sums)


NOTHING = PackSizes(packs=0, views=0, rows=0, attended=0, loss_rows=0)
"""Of no packs."""
