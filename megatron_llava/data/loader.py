"""Batches of one data parallel rank, read ahead by worker processes, resumable at any pack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.collate import collate
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.sample import SampleStore
from megatron_llava.data.schedule import Schedule
from megatron_llava.data.sent_batch import Sent, received, sendable
from megatron_llava.data.workers import begin_worker, patient

_SECONDS_OF_PATIENCE = 60
"""After which a batch is late, and again after so many."""


class PackedDataLoader:
    """Rank r of D takes the packs r, r + D, r + 2 * D, ... of a schedule.

    Microbatch i of step s with M microbatches per rank is therefore pack (s * M + i) * D + r: a
    step takes the M * D next packs, and in it every rank the same number. What the D ranks take
    together does not depend on D, so a run resumed with another D goes on with the same packs.

    The position is one number, the packs that all ranks together have consumed. It counts batches
    that were handed out, not those read ahead.

    Args:
        store: the samples.
        settings: image settings.
        schedule: which samples each pack holds.
        data_parallel_rank, data_parallel_size: r and D.
        num_workers: processes that read and decode; 0 does it in this one.
        with_pixels: off for ranks without the vision tower.
        pin_memory: put pixels where a GPU can fetch them while the trainer goes on.
        timeout_minutes: a batch that takes longer is an error.
        say: is told every minute of a batch that is late.
        pad_multiple, pad_to, sequence_multiple, view_share, exact_pixels: see `collate`.
    """

    def __init__(
        self,
        store: SampleStore,
        settings: ImageSettings,
        schedule: Schedule,
        *,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        num_workers: int = 0,
        with_pixels: bool = True,
        pin_memory: bool = False,
        timeout_minutes: float = 10.0,
        say: Callable[[str], None] = print,
        pad_multiple: int = 1,
        pad_to: int | None = None,
        sequence_multiple: int = 1,
        view_share: tuple[int, int] = (0, 1),
        exact_pixels: bool = True,
    ) -> None:
        assert 0 <= data_parallel_rank < data_parallel_size
        # Ranks that end an epoch at different times would wait for each other for ever.
        assert schedule.num_packs is None or schedule.num_packs % data_parallel_size == 0
        self.schedule = schedule
        self.consumed_packs = 0
        self._rank, self._size = data_parallel_rank, data_parallel_size
        self._num_workers, self._prefix = num_workers, store.prefix
        self._pin_memory, self._timeout_minutes, self._say = pin_memory, timeout_minutes, say
        self._packs = _Packs(
            store,
            settings,
            with_pixels=with_pixels,
            pad_multiple=pad_multiple,
            pad_to=pad_to,
            sequence_multiple=sequence_multiple,
            view_share=view_share,
            exact_pixels=exact_pixels,
            num_workers=num_workers,
        )

    def pack_rows(self, index: int) -> int:
        """Positions, before padding, of pack `index` of the schedule, whoever takes it."""
        return self.schedule.pack_rows(index)

    def state_dict(self) -> dict[str, Any]:
        """The position: the same on every rank between steps, so one copy is enough."""
        return {"consumed_packs": self.consumed_packs, "schedule": self.schedule.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; iterators made before keep their old position.

        Raises:
            ValueError: the state belongs to other packs.
        """
        if state["schedule"] != self.schedule.fingerprint:
            raise ValueError(
                f"the data position (pack {state['consumed_packs']}) was saved with another store, "
                "image setting, --seq-length, --seed, --packing-window, or --drop-last with its "
                "--global-batch-size, and means nothing here: restore them, or start the data anew "
                "with --finetune"
            )
        self.consumed_packs = int(state["consumed_packs"])

    def __iter__(self) -> Iterator[PackedBatch]:
        """This rank's batches from the position on; without an end if the schedule has none.

        Raises:
            ValueError: a sample that cannot be used, in one line, also from a worker; a batch that
                does not come.
            RuntimeError: a worker is gone: see `lost_worker`.
        """
        first = self.consumed_packs + self._rank
        sampler = _RankPacks(self.schedule, first, self._size)
        loader = DataLoader(
            self._packs,
            batch_size=None,
            sampler=sampler,
            num_workers=self._num_workers,
            # A forked worker shares the maps of the store and starts at once.
            multiprocessing_context="fork"
            if self._num_workers and sys.platform == "linux"
            else None,
            # Without one of its own it would draw from the generator that dropout uses.
            generator=torch.Generator(),
            worker_init_fn=begin_worker,
            pin_memory=self._pin_memory,
            timeout=_SECONDS_OF_PATIENCE if self._num_workers else 0,
        )
        for sent in patient(loader, partial(self._late, first)):
            if isinstance(sent, str):
                raise ValueError(sent)
            self.consumed_packs += self._size
            yield received(sent)

    def _late(self, first: int, number: int, times: int) -> None:
        """Say, or in the end raise, that batch `number` of a pass from pack `first` is late."""
        pack, seconds = first + number * self._size, times * _SECONDS_OF_PATIENCE
        samples = ", ".join(map(str, self.schedule.pack(pack).tolist()))
        text = (
            f"data-parallel rank {self._rank}: waited {seconds} s for loader worker "
            f"{number % self._num_workers} of {self._num_workers}, which reads pack {pack}: store "
            f"{self._prefix}: samples {samples}"
        )
        if seconds >= 60 * self._timeout_minutes:
            raise ValueError(
                f"{text}; --data-timeout-minutes {self._timeout_minutes:g} ends the run: is the "
                "disk of the store slow, or its network gone?"
            )
        self._say(text)


class _RankPacks(Sampler[np.ndarray]):
    """Sample ids of one rank's packs. It runs in the trainer: workers never make a plan."""

    def __init__(self, schedule: Schedule, first: int, step: int) -> None:
        self._schedule, self._first, self._step = schedule, first, step

    def __iter__(self) -> Iterator[np.ndarray]:
        end = self._schedule.num_packs
        packs = (
            count(self._first, self._step) if end is None else range(self._first, end, self._step)
        )
        for index in packs:
            yield self._schedule.pack(index)


class _Packs(Dataset["PackedBatch | Sent | str"]):
    """Reads and collates the pack of given sample ids."""

    def __init__(
        self,
        store: SampleStore,
        settings: ImageSettings,
        *,
        with_pixels: bool,
        num_workers: int,
        **how: Any,
    ) -> None:
        self._store, self._settings = store, settings
        self._with_pixels, self._num_workers, self._how = with_pixels, num_workers, how

    def __getitem__(self, sample_ids: np.ndarray) -> PackedBatch | Sent | str:
        """The batch, or the message of a ValueError, which a worker would raise as a traceback."""
        try:
            samples = [
                self._store.load(index, with_images=self._with_pixels)
                for index in sample_ids.tolist()
            ]
            batch = collate(samples, self._settings, with_pixels=self._with_pixels, **self._how)
            return sendable(batch, self._num_workers)
        except ValueError as error:
            return str(error)
