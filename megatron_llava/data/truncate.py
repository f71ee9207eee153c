"""Samples that are longer than a pack, cut off where the pack ends."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import video_settings
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.row_plan import visuals_of_samples
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.sample import Sample, SampleStore
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


class Kept(NamedTuple):
    """The beginning of a sample."""

    tokens: int
    images: int


class TruncatedStore:
    """A store of which some samples end earlier; see `SampleStore` for the methods.

    Args:
        store: the whole samples.
        kept: what is left of the shortened ones, by sample id.
    """

    def __init__(self, store: SampleStore, kept: dict[int, Kept]) -> None:
        self.prefix = store.prefix
        self.kept = kept
        self._store = store
        self._ids = np.array(sorted(kept), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._store)

    def check_tokenizer(self, fingerprint: str) -> None:
        self._store.check_tokenizer(fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """Of the store and of what is left of each shortened sample; the store's where none is."""
        if not self.kept:
            return self._store.fingerprint
        kept = np.array([(i, *self.kept[int(i)]) for i in self._ids], dtype=np.int64)
        return hashlib.sha256(self._store.fingerprint.encode() + kept.tobytes()).hexdigest()

    @cached_property
    def _images_per_sample(self) -> NDArray[np.int64]:
        counts = np.diff(self._store.image_offsets)
        counts[self._ids] = [self.kept[int(i)].images for i in self._ids]
        return counts

    @cached_property
    def image_offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self._images_per_sample)])

    @cached_property
    def image_sizes(self) -> NDArray[np.int32]:
        before = self._store.image_offsets
        sample = np.repeat(np.arange(len(self)), np.diff(before))
        within = np.arange(len(sample)) - before[sample]
        return self._store.image_sizes[within < self._images_per_sample[sample]]

    @cached_property
    def text_lengths(self) -> NDArray[np.int64]:
        lengths = self._store.text_lengths.copy()
        lengths[self._ids] = [np.subtract(*self.kept[int(i)]) for i in self._ids]
        return lengths

    def load(self, index: int, *, with_images: bool = True) -> Sample:
        sample = self._store.load(index, with_images=with_images)
        kept = self.kept.get(index)
        if kept is None:
            return sample
        return replace(
            sample,
            token_ids=sample.token_ids[: kept.tokens],
            label_mask=sample.label_mask[: kept.tokens],
            image_sizes=sample.image_sizes[: kept.images],
            images=None if sample.images is None else sample.images[: kept.images],
        )


def truncated(
    store: SampleStore, settings: ImageSettings, capacity: int, max_views: int | None = None
) -> TruncatedStore:
    """The store with each sample that does not fit into a pack cut off behind the last token that
    does. No image is cut: a sample then ends before its placeholder.

    A sample of which no trained token would be left stays as it is.

    Args:
        settings: image settings.
        capacity: positions in a pack.
        max_views: views of a pack; None for no bound.

    Raises:
        ValueError: see `sample_sizes`.
    """
    lengths, views = sample_sizes(store, settings)
    unfit = lengths > capacity
    if max_views is not None:
        unfit |= views > max_views
    kept = {}
    for index in np.flatnonzero(unfit).tolist():
        sample = store.load(index, with_images=False)
        fits = _longest_beginning(sample, settings, capacity, max_views)
        # The first token of a sample is no label.
        if sample.label_mask[1 : fits.tokens].any():
            kept[index] = fits
    return TruncatedStore(store, kept)


def _longest_beginning(
    sample: Sample, settings: ImageSettings, capacity: int, max_views: int | None
) -> Kept:
    """The longest beginning that fits.

    What an image costs may depend on how many are kept, so every number of images is tried.
    """
    is_image = sample.token_ids == IMAGE_TOKEN_INDEX
    places = np.flatnonzero(is_image)
    best = Kept(0, 0)
    for images in range(len(places) + 1):
        visuals = visuals_of_samples([sample.image_sizes[:images]], settings)
        tokens, views = row_planner().count(visuals, settings, video_settings(settings))
        if max_views is not None and views.sum() > max_views:
            continue
        end = places[images] if images < len(places) else len(is_image)
        rows = np.ones(end, dtype=np.int64)
        rows[places[:images]] = tokens
        fitting = int(np.searchsorted(np.cumsum(rows), capacity, side="right"))
        if fitting > best.tokens and np.count_nonzero(is_image[:fitting]) == images:
            best = Kept(fitting, images)
    return best
