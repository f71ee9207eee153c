"""What the packs of a step held."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

from megatron_llava.data.pack_sizes import NOTHING, PackSizes
from megatron_llava.data.packed_batch import TensorBatch


@dataclass(kw_only=True)
class Taken:
    """Sums over packs; of one data-parallel rank, until ``counts`` are summed over them."""

    sizes: PackSizes = NOTHING
    samples: int = 0
    images: int = 0

    def add(self, batch: TensorBatch) -> None:
        """Count a microbatch."""
        self.sizes += PackSizes.of(batch)
        self.samples += batch.num_samples
        self.images += batch.num_images

    def counts(self) -> torch.Tensor:
        """int64 numbers that can be summed over ranks, and read with ``of``."""
        return torch.tensor((self.samples, self.images, *astuple(self.sizes)))

    @classmethod
    def of(cls, counts: torch.Tensor) -> Taken:
        """What ``counts`` made numbers of."""
        samples, images, packs, views, rows, attended, loss_rows = counts.tolist()
        sizes = PackSizes(
            packs=packs, views=views, rows=rows, attended=attended, loss_rows=loss_rows
        )
        return cls(sizes=sizes, samples=samples, images=images)
