"""What the packs of a step held."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import torch

from megatron_llava.data.pack_sizes import NOTHING, PackSizes
from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.data.sample_kinds import SAMPLE_KINDS


@dataclass(kw_only=True)
class Taken:
    """Sums over packs; of one data-parallel rank, until ``counts`` are summed over them."""

    sizes: PackSizes = NOTHING
    samples: int = 0
    kinds: tuple[int, ...] = (0,) * len(SAMPLE_KINDS)
    """Samples of each of SAMPLE_KINDS."""
    images: int = 0

    def add(self, batch: TensorBatch) -> None:
        """Count a microbatch."""
        self.sizes += PackSizes.of(batch)
        self.samples += batch.num_samples
        self.kinds = tuple(map(sum, zip(self.kinds, batch.sample_kinds, strict=True)))
        self.images += batch.num_images

    def counts(self) -> torch.Tensor:
        """int64 numbers that can be summed over ranks, and read with ``of``."""
        return torch.tensor((self.samples, self.images, *self.kinds, *astuple(self.sizes)))

    @classmethod
    def of(cls, counts: torch.Tensor) -> Taken:
        """What ``counts`` made numbers of."""
        samples, images, *others = counts.tolist()
        kinds, of_packs = others[: len(SAMPLE_KINDS)], others[len(SAMPLE_KINDS) :]
        names = (field.name for field in fields(PackSizes))
        sizes = PackSizes(**dict(zip(names, of_packs, strict=True)))
        return cls(sizes=sizes, samples=samples, images=images, kinds=tuple(kinds))
