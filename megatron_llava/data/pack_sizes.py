"""What some packs of a run hold together: how much work they are for each part of the model."""

from dataclasses import dataclass


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
