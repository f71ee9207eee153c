"""The pretokenised multimodal store: text with one placeholder per image, and the encoded images.

A store at prefix P is five Megatron-core indexed datasets and a manifest:

    P_tokens  int32   one item per sample: token ids, IMAGE_TOKEN_INDEX once per image
    P_mask    uint8   one item per sample: 1 where the token is a supervised label
    P_images  uint8   one item per image: the encoded bytes; one document per sample
    P_sizes   int32   one item per image: [width, height] in pixels; one document per sample
                      a video is an image too, of the bytes of stored_video.py and [frames, 0]
    P_sources uint8   one item per sample: UTF-8 of where its record was found
    P.json            version, counts, tokenizer, template, provenance, and size and sha256 of each
                      file

Nothing in it depends on a resolution, a grid list or a sequence length, so those may change without
tokenising again.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_llava.data.sample import Sample, StoredImages
from megatron_llava.data.store_files import (
    PIECES,
    READABLE_VERSIONS,
    manifest_file,
    piece_files,
    pieces_of,
)
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


class Store:
    """Random access to a finished store; nothing but the index is read until a sample is asked for.

    Args:
        prefix: the `--output-prefix` it was written to.

    Raises:
        ValueError: no manifest, another format version, or a file whose size contradicts the
            manifest or its index.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.manifest = read_manifest(manifest_file(prefix))
        if "shards" in self.manifest:
            raise ValueError(f"store {self.prefix}: is a merged store, name one of its shards")
        self._check_file_sizes()
        pieces = {piece: self._open(piece) for piece in pieces_of(self._version)}
        self._tokens, self._mask = pieces["tokens"], pieces["mask"]
        self._images, self._sizes = pieces["images"], pieces["sizes"]
        self._sources = pieces.get("sources")
        self._check_indices_agree()

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return (Store, (self.prefix,))

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def _version(self) -> int:
        return int(self.manifest["format_version"])

    def _files(self) -> list[Path]:
        return piece_files(self.prefix, self._version)

    def _check_file_sizes(self) -> None:
        listed = self.manifest["files"]
        for path in self._files():
            if not path.is_file():
                raise ValueError(f"store {self.prefix}: {path.name} is missing, make it again")
            if path.name not in listed:
                raise ValueError(
                    f"store {self.prefix}: its manifest lists {', '.join(sorted(listed)[:1])}, not "
                    f"{path.name}: was it renamed? give its files the name that it was made with"
                )
            expected, found = listed[path.name]["bytes"], path.stat().st_size
            if found != expected:
                raise ValueError(
                    f"store {self.prefix}: {path.name} has {found} bytes and should have "
                    f"{expected}, make it again"
                )

    def _open(self, piece: str) -> IndexedDataset:
        path = f"{self.prefix}_{piece}"
        size = Path(f"{path}.bin").stat().st_size
        # An empty file (a store without images) cannot be mapped.
        dataset = IndexedDataset(path, mmap=size > 0)
        indexed = (
            int(dataset.sequence_lengths.sum(dtype=np.int64)) * np.dtype(PIECES[piece]).itemsize
        )
        if dataset.index.dtype != PIECES[piece] or indexed != size:
            raise ValueError(
                f"store {self.prefix}: {path}.idx describes {indexed} bytes of "
                f"{dataset.index.dtype.__name__}, {path}.bin has {size} of "
                f"{PIECES[piece].__name__}, make it again"
            )
        return dataset

    def _check_indices_agree(self) -> None:
        samples, images = (self.manifest["counts"][name] for name in ("samples", "images"))
        agree = (
            len(self._tokens) == len(self._sizes.document_indices) - 1 == samples
            and len(self._images) == len(self._sizes) == images
            and np.array_equal(self._tokens.sequence_lengths, self._mask.sequence_lengths)
            and np.array_equal(self._images.document_indices, self._sizes.document_indices)
            and (self._sources is None or len(self._sources) == samples)
        )
        if not agree:
            raise ValueError(
                f"store {self.prefix}: its .idx files do not describe the same {samples} samples "
                f"and {images} images, make it again"
            )

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise ValueError unless the store was written with the tokenizer of this fingerprint."""
        written = self.manifest["tokenizer_fingerprint"]
        if fingerprint != written:
            raise ValueError(
                f"store {self.prefix} was written with tokenizer {written}, this one is "
                f"{fingerprint}: use the same --tokenizer-model or preprocess again"
            )

    def verify_checksums(self) -> None:
        """Read every file; ValueError for the first whose sha256 is not the manifest's."""
        for path in self._files():
            if file_sha256(path) != self.manifest["files"][path.name]["sha256"]:
                raise ValueError(
                    f"store {self.prefix}: {path.name} has changed since it was written"
                )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the manifest, which holds the sha256 of every file, without the provenance: the
        same samples made elsewhere are the same store."""
        if self._sources is None:
            return file_sha256(manifest_file(self.prefix))
        kept = {key: value for key, value in self.manifest.items() if key != "provenance"}
        files = kept["files"].items()
        # By piece, for the prefix's name does not matter either.
        start = len(self.prefix.name)
        kept["files"] = {n[start:]: f for n, f in files if not n[start:].startswith("_sources.")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    # Core closes its memory maps when an IndexedDataset is collected, whatever still points into
    # them: everything handed out below is therefore a copy.

    @cached_property
    def image_offsets(self) -> np.ndarray:
        """int64 [n + 1]: the images of sample i are image_offsets[i] to image_offsets[i + 1]."""
        return self._sizes.document_indices.copy()

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """int32 [images, 2]: (width, height) in pixels; (frames, 0) of a video."""
        if len(self._sizes) == 0:
            return np.zeros((0, 2), dtype=np.int32)
        count = 2 * len(self._sizes)
        return self._sizes.bin_reader.read(np.int32, count, 0).reshape(-1, 2).copy()

    @cached_property
    def text_lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each sample without its placeholders."""
        return self._tokens.sequence_lengths.astype(np.int64) - np.diff(self.image_offsets)

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """int64 [n]: supervised tokens of each sample. Reads the whole mask."""
        total = int(self._mask.sequence_lengths.sum(dtype=np.int64))
        mask = self._mask.bin_reader.read(np.uint8, total, 0)
        # Samples are never empty, as reduceat needs.
        return np.add.reduceat(mask, self._mask.index.sequence_pointers, dtype=np.int64)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 [n] and label mask uint8 [n] of one sample."""
        return self._tokens[index].copy(), self._mask[index].copy()

    def record_source(self, index: int) -> str:
        """Where the record of a sample was found; '' in stores before version 3."""
        if self._sources is None or self._sources.sequence_lengths[index] == 0:
            return ""
        return self._sources[index].tobytes().decode(errors="surrogateescape")

    def images(self, index: int) -> list[bytes]:
        """Encoded bytes of each image of one sample."""
        return list(self._images_of(index))

    def _images_of(self, index: int) -> StoredImages:
        first, last = self.image_offsets[index : index + 2]
        return StoredImages(self._image, range(int(first), int(last)))

    def _image(self, number: int) -> bytes:
        return bytes(self._images[number].tobytes())

    def load(self, index: int, *, with_images: bool = True) -> Sample:
        """One sample for the collator; without its images only the layout can be made of it."""
        tokens, mask = self.sample(index)
        first, last = self.image_offsets[index : index + 2]
        found = self.record_source(index)
        return Sample(
            token_ids=tokens,
            label_mask=mask,
            image_sizes=tuple((int(w), int(h)) for w, h in self.image_sizes[first:last]),
            images=self._images_of(index) if with_images else None,
            source=f"store {self.prefix}: sample {index}" + (f" ({found})" if found else ""),
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store of this version; ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such store, make it with tools/preprocess_data.py")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the manifest of a store ({error!r})") from error
    if version not in READABLE_VERSIONS:
        raise ValueError(
            f"{path}: store format {version}, this version reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}: preprocess again"
        )
    if manifest["image_token_index"] != IMAGE_TOKEN_INDEX:
        raise ValueError(
            f"{path}: images are marked by {manifest['image_token_index']}, "
            f"expected {IMAGE_TOKEN_INDEX}"
        )
    return manifest


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def count_images(tokens: Sequence[int] | np.ndarray) -> int:
    """Placeholders among the token ids."""
    return int(np.count_nonzero(np.asarray(tokens) == IMAGE_TOKEN_INDEX))
