"""Telling whether a record is a near duplicate of an earlier one that was kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_llava.curation.hamming_index import HammingIndex, hamming_distance
from megatron_llava.curation.image_hash import perceptual_hash
from megatron_llava.curation.text_similarity import TextIndex, similarity, text_signature
from megatron_llava.data.image_source import read_image
from megatron_llava.data.records import parse_record
from megatron_llava.vision.tiles import open_image

BY = ("both", "image", "text")
"""What has to be near. A record without images is compared by its text in every case."""


class Fingerprint(NamedTuple):
    """What of a record is compared, and only with records that are compared by the same.

    Attributes:
        images: 64-bit hashes of all images, in order; () where texts alone are compared.
        text: see `text_signature`; None where images alone are compared.
    """

    images: tuple[int, ...]
    text: NDArray[np.uint32] | None


class Match(NamedTuple):
    """An earlier record that a record is a near duplicate of.

    Attributes:
        number: as it was added.
        image_distances: bits, one for each image.
        text_similarity: estimated; None where texts were not compared.
    """

    number: int
    image_distances: tuple[int, ...]
    text_similarity: float | None


def fingerprint(raw: Any, source: str, image_folder: Path | None, by: str) -> Fingerprint | None:
    """Read what of a raw record is compared; None for a record with videos, except by text.

    Raises:
        ValueError: one line that starts with `source`.
    """
    record = parse_record(raw, source)
    if by == "text":
        return Fingerprint((), text_signature(record.turns))
    if record.videos:
        return None
    hashes = []
    for image in record.images:
        data, called = read_image(image, image_folder, source)
        hashes.append(perceptual_hash(open_image(data, f"{source}: image {called}")))
    compared = by == "both" or not hashes
    return Fingerprint(tuple(hashes), text_signature(record.turns) if compared else None)


class NearDuplicates:
    """The fingerprints of the records that were kept, all made with one `by`.

    About 1.5 KB each, 6 KB more where texts alone are compared. A record is compared with all kept
    ones with near images, so thousands of records about one blank image take long.

    Args:
        image_hash_distance: bits in which the hashes of two near images may differ.
        text_similarity: least similarity of two near texts.
    """

    def __init__(self, image_hash_distance: int, text_similarity: float) -> None:
        self._text_similarity = text_similarity
        self._first_hashes = HammingIndex(image_hash_distance)
        self._distance = image_hash_distance
        # Records share images, so hashes are searched first and records with these hashes next.
        self._with_first: dict[int, list[tuple[int, ...]]] = {}
        self._with_hashes: dict[tuple[int, ...], list[int]] = {}
        self._texts = TextIndex(text_similarity)
        self._signatures: dict[int, NDArray[np.uint32]] = {}

    def match(self, record: Fingerprint) -> Match | None:
        """The earliest near one."""
        if not record.images:
            assert record.text is not None
            return self._first_near(self._texts.candidates(record.text), record, ())
        found = [
            match
            for hashes, distances in self._near_images(record.images)
            if (match := self._first_near(self._with_hashes[hashes], record, distances))
        ]
        return min(found, default=None, key=lambda match: match.number)

    def add(self, number: int, record: Fingerprint) -> None:
        """Keep a record; numbers ascend."""
        if record.text is not None:
            self._signatures[number] = record.text
        if not record.images:
            assert record.text is not None
            self._texts.add(number, record.text)
            return
        if record.images not in self._with_hashes:
            first = record.images[0]
            if first not in self._with_first:
                self._first_hashes.add(first)
            self._with_first.setdefault(first, []).append(record.images)
        self._with_hashes.setdefault(record.images, []).append(number)

    def _near_images(
        self, images: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Hashes of kept records that are as many and all near, and their distances."""
        for first in self._first_hashes.near(images[0]):
            for hashes in self._with_first[first]:
                if len(hashes) == len(images):
                    distances = tuple(map(hamming_distance, hashes, images))
                    if max(distances) <= self._distance:
                        yield hashes, distances

    def _first_near(
        self, numbers: list[int], record: Fingerprint, distances: tuple[int, ...]
    ) -> Match | None:
        """The first of some kept records whose text is near too."""
        if record.text is None or not numbers:
            return Match(numbers[0], distances, None) if numbers else None
        signatures = np.stack([self._signatures[number] for number in numbers])
        found = similarity(signatures, record.text)
        near = np.flatnonzero(found >= self._text_similarity)
        return Match(numbers[near[0]], distances, float(found[near[0]])) if len(near) else None
