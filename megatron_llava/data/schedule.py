"""Which samples make up pack number g, and how long it is: the same answer on every rank.

A schedule needs only the index of a store, so each rank computes it alone and asks no other.
"""

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.packing import (
    Balance,
    PackingPlan,
    fitting_samples,
    plan_epoch,
    sample_sizes,
)
from megatron_llava.data.plan_cache import PLAN_VERSION, cached_plan
from megatron_llava.data.sample import SampleStore

# The packs of one step may lie in two epochs.
_PLANS_IN_MEMORY = 2
_EPOCHS_IN_VAIN = 100
"""After so many of which `drop_last` left nothing, there is none to wait for."""


class Schedule(Protocol):
    """Packs in the order in which they are trained or evaluated."""

    num_packs: int | None
    """None where there is no end."""

    num_dropped: int
    """Samples that do not fit into a pack and are left out."""

    longest_sample: int
    """Positions of the longest sample that is used."""

    fingerprint: str
    """Equal for schedules of the same packs; a position in one is meaningless in another."""

    def pack(self, index: int) -> np.ndarray:
        """Sample ids, int64, of a pack; empty for one that only fills up a global batch."""

    def pack_rows(self, index: int, sequence_multiple: int = 1) -> int:
        """Positions of a pack before padding, each sample lengthened to a multiple."""


class _Fitting:
    """The samples of a store that fit, and what identifies them."""

    def __init__(
        self,
        store: SampleStore,
        settings: ImageSettings,
        capacity: int,
        max_bad_records: int,
        max_views: int | None,
    ) -> None:
        lengths, views = sample_sizes(store, settings)
        self.ids = fitting_samples(
            lengths,
            capacity,
            name=str(store.prefix),
            max_bad_records=max_bad_records,
            views=views,
            max_views=max_views,
        )
        self.lengths, self.views = lengths[self.ids], views[self.ids]
        self.with_images = np.diff(store.image_offsets)[self.ids] > 0
        self.num_dropped = len(lengths) - len(self.ids)
        self.longest = int(self.lengths.max())
        self.store_fingerprint = store.fingerprint
        self.key = [PLAN_VERSION, store.fingerprint, asdict(settings), capacity, max_views]

    def rows(self, plan: PackingPlan, number: int, multiple: int) -> int:
        """Positions of a pack of a plan, each sample lengthened to a multiple."""
        lengths = self.lengths[plan.pack(number)]
        return int((lengths + -lengths % multiple).sum())

    def fingerprint(self, *more: object) -> str:
        text = json.dumps([*self.key, *more])
        return hashlib.sha256(text.encode() + self.lengths.tobytes()).hexdigest()


class TrainingSchedule:
    """Epoch after epoch without an end: the last packs of one are followed by the next one's first.

    Where a global batch is filled up so, it is of two epochs, unless `drop_last` leaves them out.

    Args:
        store: the samples.
        settings: image settings, which decide the length of a sample.
        capacity: positions in a pack.
        seed: decides the order, together with the epoch's number.
        window: samples packed together; 0 for all of an epoch.
        max_bad_records: how many samples that do not fit into a pack may be left out.
        max_views: views of a pack; None for no bound.
        balance: how packs are ordered by cost; None for not.
        modality_batch: packs of a global batch, which are of one modality; None for whatever comes.
        drop_last: packs of a global batch, where the last ones of an epoch that fill none are left
            out, so that every batch is of one epoch; None for leaving out nothing.
        cache_path: directory for plans; beside the store by default.

    Raises:
        ValueError: see `sample_sizes`, `fitting_samples` and `cached_plan`; with `drop_last`, a
            first epoch that fills no batch, naming both numbers.
    """

    num_packs: int | None = None

    def __init__(
        self,
        store: SampleStore,
        settings: ImageSettings,
        capacity: int,
        *,
        seed: int,
        window: int = 0,
        max_bad_records: int = 0,
        max_views: int | None = None,
        balance: Balance | None = None,
        modality_batch: int | None = None,
        drop_last: int | None = None,
        cache_path: str | Path | None = None,
    ) -> None:
        self._samples = _Fitting(store, settings, capacity, max_bad_records, max_views)
        self.num_dropped = self._samples.num_dropped
        self.longest_sample = self._samples.longest
        ordered = None if balance is None else asdict(balance)
        grouped = [] if modality_batch is None else ["modality", modality_batch]
        whole = [] if drop_last is None else ["drop_last", drop_last]
        self.fingerprint = self._samples.fingerprint(seed, window, ordered, *grouped, *whole)
        self._capacity, self._balance, self._drop_last = capacity, balance, drop_last
        self._how: dict[str, Any] = {"seed": seed, "window": window, "max_views": max_views}
        if modality_batch is not None:
            self._how |= {"batch": modality_batch, "with_images": self._samples.with_images}
        self._goes_on = balance is not None or modality_batch is not None
        self._cache_path = Path(cache_path) if cache_path is not None else store.prefix.parent
        self._prefix = store.prefix
        self._plans: OrderedDict[int, PackingPlan] = OrderedDict()
        self._epoch_starts = [0]
        if drop_last is not None:
            self._check_epoch(0)

    def plan(self, epoch: int) -> PackingPlan:
        """The plan of an epoch; its sample ids count the samples that fit, not the store's."""
        if epoch not in self._plans:
            self._plans[epoch] = cached_plan(
                self._samples.lengths,
                self._capacity,
                views=self._samples.views,
                balance=self._balance,
                epoch=epoch,
                # Runs of equal cost and global batches go on from one epoch to the next.
                first_pack=self._first_pack(epoch) if self._goes_on else 0,
                **self._how,
                store_fingerprint=self._samples.store_fingerprint,
                cache_path=self._cache_path,
                name=self._prefix.name,
            )
            if len(self._plans) > _PLANS_IN_MEMORY:
                self._plans.popitem(last=False)
        self._plans.move_to_end(epoch)
        return self._plans[epoch]

    def packs_of(self, epoch: int) -> int:
        """How many packs of an epoch's plan are taken: the first so many.

        With `drop_last` that may be none of an epoch that has a few packs less than the first.
        """
        planned = len(self.plan(epoch))
        return planned if self._drop_last is None else planned - planned % self._drop_last

    def _check_epoch(self, epoch: int) -> None:
        """Refuse an epoch of which nothing is taken."""
        planned = len(self.plan(epoch))
        if self.packs_of(epoch) == 0:
            raise ValueError(
                f"store {self._prefix}: an epoch has {planned} packs, fewer than "
                f"--global-batch-size {self._drop_last}, so --drop-last leaves out all of them: "
                f"give a --global-batch-size of {planned} or less, or drop --drop-last"
            )

    def _first_pack(self, epoch: int) -> int:
        """Number of an epoch's first pack in the run."""
        # An epoch's number of packs is known from its plan only; they differ by a few.
        while len(self._epoch_starts) <= epoch:
            last = len(self._epoch_starts) - 1
            self._epoch_starts.append(self._epoch_starts[last] + self.packs_of(last))
        return self._epoch_starts[epoch]

    def locate(self, index: int) -> tuple[int, int]:
        """(epoch, pack in that epoch) of a pack.

        Raises:
            ValueError: a hundred epochs in a row fill no batch.
        """
        while index >= self._epoch_starts[-1]:
            self._first_pack(len(self._epoch_starts))
            recent = self._epoch_starts[-_EPOCHS_IN_VAIN:]
            if len(recent) == _EPOCHS_IN_VAIN and recent[0] == recent[-1]:
                self._check_epoch(len(self._epoch_starts) - 2)
        epoch = int(np.searchsorted(self._epoch_starts, index, side="right")) - 1
        return epoch, index - self._epoch_starts[epoch]

    def pack(self, index: int) -> np.ndarray:
        epoch, number = self.locate(index)
        return self._samples.ids[self.plan(epoch).pack(number)]

    def pack_rows(self, index: int, sequence_multiple: int = 1) -> int:
        epoch, number = self.locate(index)
        return self._samples.rows(self.plan(epoch), number, sequence_multiple)


class EvaluationSchedule:
    """Every sample once, in the order of the store, packed window by window.

    Args:
        packs_per_step: data parallel size times microbatches; empty packs fill up the last step, so
            that all ranks take the same number.
        store, settings, capacity, window, max_bad_records, max_views: as for `TrainingSchedule`.

    Raises:
        ValueError: as for `TrainingSchedule`.
    """

    def __init__(
        self,
        store: SampleStore,
        settings: ImageSettings,
        capacity: int,
        *,
        packs_per_step: int,
        window: int = 4096,
        max_bad_records: int = 0,
        max_views: int | None = None,
    ) -> None:
        self._samples = _Fitting(store, settings, capacity, max_bad_records, max_views)
        self.num_dropped = self._samples.num_dropped
        self.longest_sample = self._samples.longest
        self.fingerprint = self._samples.fingerprint(window)
        self._plan = plan_epoch(
            self._samples.lengths,
            capacity,
            seed=0,
            epoch=0,
            window=window,
            shuffle=False,
            views=self._samples.views,
            max_views=max_views,
        )
        self.num_packs: int | None = -(-len(self._plan) // packs_per_step) * packs_per_step

    def pack(self, index: int) -> np.ndarray:
        assert self.num_packs is not None and 0 <= index < self.num_packs
        if index >= len(self._plan):
            return np.zeros(0, dtype=np.int64)
        return self._samples.ids[self._plan.pack(index)]

    def pack_rows(self, index: int, sequence_multiple: int = 1) -> int:
        assert self.num_packs is not None and 0 <= index < self.num_packs
        if index >= len(self._plan):
            return 0
        return self._samples.rows(self._plan, index, sequence_multiple)
