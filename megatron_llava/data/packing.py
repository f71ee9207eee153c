"""Which samples share a sequence: the packing plan of an epoch.

Samples are shuffled, cut into windows, and each window is packed by first-fit: long samples first
in decreasing order, which is what fills packs well, then the short ones as they come. Were the
short ones sorted too, a pack would hold samples of one length, and often of one kind: losses of
neighbouring steps were seen to differ by a factor of fifty. Then the packs are shuffled. Windows
keep the work linear and cost about one partly filled pack each. No sample is dropped for not
fitting well.
"""

from dataclasses import dataclass

import numpy as np

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.row_plan import IMAGE, NoLayoutError
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.store import Store

_SHORT = 8
"""A sample is short if a pack holds this many of its length."""


@dataclass(frozen=True, kw_only=True)
class PackingPlan:
    """The packs of one epoch.

    Attributes:
        pack_offsets: int64 [m + 1]; pack k holds sample_ids[pack_offsets[k] : pack_offsets[k + 1]].
        sample_ids: int64 [n], each sample once.
        pack_rows: int64 [m], positions in each pack before padding.
    """

    pack_offsets: np.ndarray
    sample_ids: np.ndarray
    pack_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.pack_rows)

    def pack(self, index: int) -> np.ndarray:
        """Sample ids, int64, of one pack."""
        return self.sample_ids[self.pack_offsets[index] : self.pack_offsets[index + 1]]

    def fill_fraction(self, capacity: int) -> float:
        """Share of the packs' positions that hold a sample, 0 to 1."""
        return float(self.pack_rows.sum()) / (capacity * len(self))


def sample_lengths(store: Store, settings: ImageSettings) -> np.ndarray:
    """int64 [n]: positions of each sample, its text tokens and the visual tokens of its images.

    Raises:
        ValueError: an image that the settings leave no token of; names the sample.
    """
    per_sample = np.diff(store.image_offsets)
    sample_of_image = np.repeat(np.arange(len(store)), per_sample)
    visuals = np.zeros((len(sample_of_image), 5), dtype=np.int64)
    visuals[:, :2] = store.image_sizes
    visuals[:, 2] = IMAGE
    # Two images stand for any number of several.
    several = per_sample[sample_of_image] > 1
    visuals[:, 3] = several & settings.single_view(2)
    visuals[:, 4] = np.arange(len(visuals)) > store.image_offsets[sample_of_image]
    unique, first, inverse = np.unique(visuals, axis=0, return_index=True, return_inverse=True)
    try:
        counts, _ = row_planner().count(unique, settings)
    except NoLayoutError as error:
        sample = sample_of_image[first[error.visual]]
        raise ValueError(f"store {store.prefix}: sample {sample}: {error}") from error
    lengths = store.text_lengths.copy()
    np.add.at(lengths, sample_of_image, counts[inverse.reshape(-1)])
    return lengths


def fitting_samples(
    lengths: np.ndarray, capacity: int, *, name: str, max_bad_records: int = 0
) -> np.ndarray:
    """int64 ids of the samples that fit into a pack.

    Args:
        lengths: int64 [n], positions of each sample.
        capacity: positions in a pack, `--seq-length`.
        name: the store, for the message.
        max_bad_records: how many too long samples may be left out.

    Raises:
        ValueError: more samples than that are too long, or none is left.
    """
    too_long = np.flatnonzero(lengths > capacity)
    if len(too_long) > max_bad_records:
        raise ValueError(
            f"store {name}: sample {too_long[0]} has {lengths[too_long[0]]} positions, more than "
            f"--seq-length {capacity} ({len(too_long)} of {len(lengths)} samples have, the longest "
            f"has {lengths.max()}): raise --seq-length, lower the image resolution, or leave them "
            f"out with --max-bad-records {len(too_long)}"
        )
    if len(too_long) == len(lengths):
        raise ValueError(f"store {name}: no sample fits into --seq-length {capacity}")
    return np.flatnonzero(lengths <= capacity)


def plan_epoch(
    lengths: np.ndarray, capacity: int, *, seed: int, epoch: int, window: int, shuffle: bool = True
) -> PackingPlan:
    """Pack every sample once.

    Args:
        lengths: int64 [n] > 0, positions of each sample, none above `capacity`.
        capacity: positions in a pack.
        seed, epoch: decide the order; the same pair gives the same plan on every machine.
        window: samples packed together.
        shuffle: off, samples are packed window by window in their own order and packs stay as made.
    """
    assert len(lengths) > 0 and lengths.min() > 0 and lengths.max() <= capacity
    generator = np.random.PCG64([seed, epoch])
    order = _permutation(generator, len(lengths)) if shuffle else np.arange(len(lengths))
    bins = np.empty(len(lengths), dtype=np.int64)
    sample_ids = np.empty(len(lengths), dtype=np.int64)
    num_packs = 0
    for start in range(0, len(lengths), window):
        ids = order[start : start + window]
        long = np.where(lengths[ids] * _SHORT > capacity, lengths[ids], 0)
        ids = ids[np.argsort(-long, kind="stable")]
        local = _first_fit(lengths[ids], capacity)
        by_pack = np.argsort(local, kind="stable")
        sample_ids[start : start + window] = ids[by_pack]
        bins[start : start + window] = local[by_pack] + num_packs
        num_packs += int(local.max()) + 1
    # Packs are consecutive runs of equal bin numbers here, whatever their order becomes.
    offsets = np.searchsorted(bins, np.arange(num_packs + 1))
    rows = np.add.reduceat(lengths[sample_ids], offsets[:-1])
    plan = PackingPlan(pack_offsets=offsets, sample_ids=sample_ids, pack_rows=rows)
    return _reorder(plan, _permutation(generator, num_packs)) if shuffle else plan


def _permutation(generator: np.random.PCG64, count: int) -> np.ndarray:
    # numpy keeps the raw bits of a generator the same in every version, not its permutations.
    return np.argsort(generator.random_raw(count), kind="stable")


def _first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [n]: the bin of each item, the first of those opened so far with room for it."""
    room = np.full(len(lengths), capacity, dtype=np.int64)
    bins = np.empty(len(lengths), dtype=np.int64)
    opened = 0
    for item, length in enumerate(lengths.tolist()):
        # The bin after the last opened one is empty, so argmax always finds one.
        target = int((room[: opened + 1] >= length).argmax())
        room[target] -= length
        bins[item] = target
        opened += target == opened
    return bins


def _reorder(plan: PackingPlan, order: np.ndarray) -> PackingPlan:
    sizes = np.diff(plan.pack_offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(len(plan.sample_ids)) - np.repeat(offsets[:-1], sizes)
    taken = np.repeat(plan.pack_offsets[:-1][order], sizes) + within
    return PackingPlan(
        pack_offsets=offsets,
        sample_ids=plan.sample_ids[taken],
        pack_rows=plan.pack_rows[order],
    )
