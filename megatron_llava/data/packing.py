"""The packing plan of an epoch: which samples share a pack, and the order of the packs.

`pack_samples` deals the samples. Where packs are balanced, neighbours cost about the same: data
parallel ranks take neighbouring packs at the same time and wait for the dearest of them.
"""

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import video_settings
from megatron_llava.data.modality_batches import order_of_batches
from megatron_llava.data.pack_samples import pack_samples
from megatron_llava.data.row_plan import IMAGE, VIDEO, NoLayoutError
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.sample import SampleStore
from megatron_llava.data.splitmix import one_hash, permutation

_RUNS_OF_A_BLOCK = 64
_RUN_STREAM = (1 << 64) - 3
_MODALITY_STREAM = (1 << 64) - 6


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Packs are put in runs of `group` that cost about the same.

    The cost of a pack is row * (its rows) + attended * (the sum of its samples' squared rows) +
    view * (its views): integers, so that every machine finds the same.

    Attributes:
        group: packs of a run; runs begin at multiples of it, counted from the first epoch's first
            pack. Data-parallel sizes that divide it are balanced.
        row, attended, view: what one costs.
    """

    group: int
    row: int
    attended: int
    view: int


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


def sample_sizes(store: SampleStore, settings: ImageSettings) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] twice: positions of each sample, its text tokens and the visual tokens of its
    images and videos; and their views.

    Raises:
        ValueError: an image that the settings leave no token of; names the sample.
    """
    per_sample = np.diff(store.image_offsets)
    sample_of_image = np.repeat(np.arange(len(store)), per_sample)
    visuals = np.zeros((len(sample_of_image), 5), dtype=np.int64)
    visuals[:, :2] = store.image_sizes
    is_image = visuals[:, 1] > 0
    visuals[:, 2] = np.where(is_image, IMAGE, VIDEO)
    # Two images stand for any number of several.
    images = np.bincount(sample_of_image[is_image], minlength=len(store))
    visuals[:, 3] = (images[sample_of_image] > 1) & is_image & settings.single_view(2)
    after_another = np.arange(len(visuals)) > store.image_offsets[sample_of_image]
    visuals[:, 4] = after_another & is_image
    unique, first, inverse = np.unique(visuals, axis=0, return_index=True, return_inverse=True)
    try:
        tokens, views = row_planner().count(unique, settings, video_settings(settings))
    except NoLayoutError as error:
        sample = sample_of_image[first[error.visual]]
        raise ValueError(f"store {store.prefix}: sample {sample}: {error}") from error
    lengths, of_sample = store.text_lengths.copy(), np.zeros(len(store), dtype=np.int64)
    np.add.at(lengths, sample_of_image, tokens[inverse.reshape(-1)])
    np.add.at(of_sample, sample_of_image, views[inverse.reshape(-1)])
    return lengths, of_sample


def fitting_samples(
    lengths: np.ndarray,
    capacity: int,
    *,
    name: str,
    max_bad_records: int = 0,
    views: np.ndarray | None = None,
    max_views: int | None = None,
) -> np.ndarray:
    """int64 ids of the samples that fit into a pack.

    Args:
        lengths: int64 [n], positions of each sample.
        capacity: positions in a pack, `--seq-length`.
        name: the store, for the message.
        max_bad_records: how many samples that do not fit may be left out.
        views, max_views: int64 [n], views of each sample, and of a pack, `--max-views-per-pack`.

    Raises:
        ValueError: more samples than that do not fit, or none is left.
    """
    fits = lengths <= capacity
    if views is not None and max_views is not None:
        fits &= views <= max_views
    unfit = np.flatnonzero(~fits)
    if len(unfit) > max_bad_records:
        raise ValueError(_unfit(lengths, capacity, name, unfit, views, max_views))
    if len(unfit) == len(lengths):
        raise ValueError(
            f"store {name}: no sample fits into --seq-length {capacity}: the shortest has "
            f"{lengths.min()} positions"
        )
    return np.flatnonzero(fits)


def _unfit(
    lengths: np.ndarray,
    capacity: int,
    name: str,
    unfit: np.ndarray,
    views: np.ndarray | None,
    max_views: int | None,
) -> str:
    first = unfit[0]
    if lengths[first] <= capacity:
        assert views is not None
        return (
            f"store {name}: sample {first} has {views[first]} views, more than "
            f"--max-views-per-pack {max_views} ({len(unfit)} of {len(lengths)} samples do not fit "
            "into a pack): raise it, lower the image resolution, or leave them out with "
            f"--max-bad-records {len(unfit)}"
        )
    return (
        f"store {name}: sample {first} has {lengths[first]} positions, more than --seq-length "
        f"{capacity} ({len(unfit)} of {len(lengths)} samples have, the longest has "
        f"{lengths.max()}): raise --seq-length, lower the image resolution, shorten their text "
        "with --oversize-samples truncate (an image is never cut), or leave them out with "
        f"--max-bad-records {len(unfit)}"
    )


def plan_epoch(
    lengths: np.ndarray,
    capacity: int,
    *,
    seed: int,
    epoch: int,
    window: int = 0,
    shuffle: bool = True,
    views: np.ndarray | None = None,
    max_views: int | None = None,
    balance: Balance | None = None,
    first_pack: int = 0,
    with_images: np.ndarray | None = None,
    batch: int = 1,
) -> PackingPlan:
    """Pack every sample once.

    Args:
        lengths: int64 [n] > 0, positions of each sample, none above `capacity`.
        capacity: positions in a pack.
        seed, epoch: decide the order; the same pair gives the same plan on every machine.
        window: samples packed together; 0 for all.
        shuffle: off, samples are taken in their own order and packs stay as made.
        views, max_views: int64 [n], views of each sample, and most of a pack; None for no bound.
        balance: how packs are ordered by cost; None for not. Views count only where given.
        first_pack: number of the epoch's first pack in the run.
        with_images: bool [n], which samples have an image or a video; packs and global batches are
            then of one modality (`modality_batches`). None for whatever comes.
        batch: packs of a global batch; counts with `with_images` only.
    """
    if with_images is not None:
        how = {"epoch": epoch, "window": window, "shuffle": shuffle, "max_views": max_views}
        return _by_modality(
            lengths, capacity, with_images, views, balance, batch, first_pack, seed, how
        )
    assert len(lengths) > 0 and lengths.min() > 0 and lengths.max() <= capacity
    stream = one_hash(seed % (1 << 64), epoch)
    bounded = max_views is not None and views is not None
    packs = pack_samples(
        lengths,
        capacity,
        seed=stream,
        window=window,
        shuffle=shuffle,
        views=views if bounded else None,
        max_views=max_views or 0,
    )
    taken = lengths[packs.sample_ids]
    starts = packs.offsets[:-1]
    rows = np.add.reduceat(taken, starts)
    plan = PackingPlan(pack_offsets=packs.offsets, sample_ids=packs.sample_ids, pack_rows=rows)
    if balance is None:
        return plan
    costs = balance.row * rows + balance.attended * np.add.reduceat(taken * taken, starts)
    if views is not None:
        costs += balance.view * np.add.reduceat(views[packs.sample_ids], starts)
    order = balanced_order(costs, balance.group, first_pack, one_hash(stream, _RUN_STREAM))
    return _reorder(plan, order)


def _by_modality(
    lengths: np.ndarray,
    capacity: int,
    with_images: np.ndarray,
    views: np.ndarray | None,
    balance: Balance | None,
    batch: int,
    first_pack: int,
    seed: int,
    how: dict[str, Any],
) -> PackingPlan:
    """Plans of the samples of each modality, one behind the other, in the order of the batches."""
    if balance is not None:
        # Runs that begin where batches do.
        balance = replace(balance, group=gcd(balance.group, batch))
    plans, ids = [], []
    for modality in (False, True):
        chosen = np.flatnonzero(with_images == modality)
        if not len(chosen):
            continue
        plan = plan_epoch(
            lengths[chosen],
            capacity,
            seed=one_hash(seed % (1 << 64), _MODALITY_STREAM + modality),
            views=None if views is None else views[chosen],
            balance=balance,
            **how,
        )
        plans.append(plan)
        ids.append(chosen[plan.sample_ids])
    sizes = np.concatenate([np.diff(plan.pack_offsets) for plan in plans])
    together = PackingPlan(
        pack_offsets=np.concatenate([[0], np.cumsum(sizes)]),
        sample_ids=np.concatenate(ids),
        pack_rows=np.concatenate([plan.pack_rows for plan in plans]),
    )
    stream = one_hash(one_hash(seed % (1 << 64), how["epoch"]), _MODALITY_STREAM)
    return _reorder(
        together, order_of_batches([len(plan) for plan in plans], batch, first_pack, stream)
    )


def balanced_order(costs: np.ndarray, group: int, first_pack: int, seed: int) -> np.ndarray:
    """int64 [m]: packs in runs of about equal cost, the runs shuffled.

    Packs are sorted by cost within blocks of 64 runs, not all of them together: what a run holds
    stays a draw from the whole store but for its cost. Packs before the first and behind the last
    whole run stay where they are.
    """
    head = -first_pack % group
    runs = max(len(costs) - head, 0) // group
    order = np.arange(len(costs))
    if runs < 2:
        return order
    for first in range(0, runs, _RUNS_OF_A_BLOCK):
        count = min(_RUNS_OF_A_BLOCK, runs - first)
        begin = head + first * group
        part = order[begin : begin + count * group]
        by_cost = part[np.argsort(costs[part], kind="stable")].reshape(count, group)
        shuffled = permutation(one_hash(seed, first), count)
        order[begin : begin + count * group] = by_cost[shuffled].reshape(-1)
    return order


def wait_fraction(costs: np.ndarray, data_parallel_size: int) -> float:
    """Share of the ranks' time that is waiting, where each takes one pack at a time, 0 to 1."""
    steps = len(costs) // data_parallel_size
    together = costs[: steps * data_parallel_size].reshape(steps, data_parallel_size)
    longest = together.max(axis=1).sum() * data_parallel_size
    return float(1 - together.sum() / longest)


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
