"""Some packs of a run, to know from them what its packs hold on average."""

from collections.abc import Iterator

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.collate import collate
from megatron_llava.data.pack_sizes import NOTHING, PackSizes
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.sample import SampleStore
from megatron_llava.data.schedule import TrainingSchedule

_PACKS = 256
"""Enough to know the averages of shuffled packs to about a percent; takes a second or less."""


def sampled_packs(
    store: SampleStore, settings: ImageSettings, schedule: TrainingSchedule
) -> Iterator[PackedBatch]:
    """Some packs of the first epoch without pixels, evenly spread; no image is read.

    Neighbours may have been put together for their cost, so the first ones would be no fair sample.
    Which ones depends on the store and the settings of the schedule only, not on where a run is
    resumed.
    """
    planned = schedule.packs_of(0)
    packs = min(planned, _PACKS)
    for index in range(0, packs * (planned // packs), planned // packs):
        samples = [store.load(int(i), with_images=False) for i in schedule.pack(index)]
        yield collate(samples, settings, with_pixels=False)


def pack_sizes(
    store: SampleStore, settings: ImageSettings, schedule: TrainingSchedule
) -> PackSizes:
    """Sizes of the ``sampled_packs``."""
    return sum((PackSizes.of(batch) for batch in sampled_packs(store, settings, schedule)), NOTHING)
