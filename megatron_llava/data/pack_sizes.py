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

    @classmethod
    def of(cls, batch: PackedBatch | TensorBatch) -> PackSizes:
        """Of one pack; of all of it also where the batch is a rank's share."""
        return cls(
            packs=1,
            views=max(batch.num_views, 1),
            rows=batch.num_rows,
            attended=batch.attended,
            loss_rows=max(batch.num_loss_rows, 1),
        )

    def __add__(self, other: PackSizes) -> PackSizes:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return PackSizes(**sums)


NOTHING = PackSizes(packs=0, views=0, rows=0, attended=0, loss_rows=0)
"""Of no packs."""
