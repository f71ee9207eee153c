"""Several stores as one: a manifest that names them, nothing copied.

    P.json    {"format_version", "shards": [{"prefix", "manifest_sha256"}, ...], "counts", ...}

Prefixes are relative to the manifest's folder where they lie below it, so that both can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_llava.data.sample import Sample
from megatron_llava.data.store import Store, read_manifest
from megatron_llava.data.store_files import (
    COUNTS,
    FORMAT_VERSION,
    check_output_prefix,
    manifest_file,
)
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

# What shards have to have in common.
_COMMON = ("tokenizer_fingerprint", "conversation_template")


def open_store(prefix: str | Path) -> Store | MergedStore:
    """The store at a prefix, of whichever kind; errors as for `Store`."""
    manifest = read_manifest(manifest_file(prefix))
    return MergedStore(prefix) if "shards" in manifest else Store(prefix)


def append_stores(prefix: str | Path, shards: Sequence[str | Path]) -> int:
    """Put more shards behind those of a merged store; returns its samples now.

    Raises:
        ValueError: no merged store, or as `merge_stores`.
    """
    manifest = read_manifest(manifest_file(prefix))
    if "shards" not in manifest:
        raise ValueError(
            f"{prefix}: is no merged store; merge it and the new shards into one of another name"
        )
    folder = Path(prefix).parent
    there = [folder / shard["prefix"] for shard in manifest["shards"]]
    return merge_stores(prefix, [*there, *shards], overwrite=True)


def merge_stores(prefix: str | Path, shards: Sequence[str | Path], *, overwrite: bool) -> int:
    """Write the manifest of a merged store; returns its samples.

    Raises:
        ValueError: no shard, one twice, one that is no store or a merged one itself, or shards of
            different tokenizers or templates.
    """
    prefix = Path(prefix)
    check_output_prefix(prefix, overwrite)
    if len({Path(shard).resolve() for shard in shards}) != len(shards) or not shards:
        raise ValueError(f"{prefix}: give at least one shard, and none twice")
    if prefix.resolve() in {Path(shard).resolve() for shard in shards}:
        raise ValueError(
            f"{prefix}: is one of the shards, which the merged store would replace; give another "
            "--output-prefix"
        )
    if manifest_file(prefix).exists() and "shards" not in read_manifest(manifest_file(prefix)):
        raise ValueError(
            f"{prefix}: is a store of its own, of which only the manifest would be replaced; give "
            "another --output-prefix"
        )
    opened = []
    for shard in shards:
        if "shards" in read_manifest(manifest_file(shard)):
            raise ValueError(f"{shard}: is a merged store itself, name its shards instead")
        opened.append(Store(shard))
    first = opened[0]
    for store in opened[1:]:
        for key in _COMMON:
            if store.manifest[key] != first.manifest[key]:
                raise ValueError(
                    f"store {store.prefix} has {key} {store.manifest[key]}, store {first.prefix} "
                    f"has {first.manifest[key]}: preprocess them alike"
                )
    counts = {
        name: sum(store.manifest["counts"].get(name, 0) for store in opened) for name in COUNTS
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "counts": counts,
        **{key: first.manifest[key] for key in _COMMON},
        "image_token_index": IMAGE_TOKEN_INDEX,
        "shards": [
            {"prefix": _relative(store.prefix, prefix.parent), "manifest_sha256": store.fingerprint}
            for store in opened
        ],
    }
    prefix.parent.mkdir(parents=True, exist_ok=True)
    written = manifest_file(prefix).with_suffix(".partial")
    written.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(written, manifest_file(prefix))
    return int(counts["samples"])


def _relative(prefix: Path, folder: Path) -> str:
    prefix, folder = prefix.resolve(), folder.resolve()
    return str(prefix.relative_to(folder) if prefix.is_relative_to(folder) else prefix)


class MergedStore:
    """The samples of several stores, one store after the other; see `Store` for the methods.

    Raises:
        ValueError: as `Store`, and where a shard has changed since the merge.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.manifest: dict[str, Any] = read_manifest(manifest_file(prefix))
        self._stores = []
        for shard in self.manifest["shards"]:
            store = Store(self.prefix.parent / shard["prefix"])
            if store.fingerprint != shard["manifest_sha256"]:
                raise ValueError(
                    f"store {self.prefix}: shard {store.prefix} has changed since it was merged; "
                    "merge again"
                )
            self._stores.append(store)
        self._starts = np.cumsum([0, *(len(store) for store in self._stores)])

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return (MergedStore, (self.prefix,))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check_tokenizer(self, fingerprint: str) -> None:
        self._stores[0].check_tokenizer(fingerprint)

    def verify_checksums(self) -> None:
        for store in self._stores:
            store.verify_checksums()

    @cached_property
    def fingerprint(self) -> str:
        """Of the shards and their order: where they lie does not matter."""
        shards = [shard["manifest_sha256"] for shard in self.manifest["shards"]]
        return hashlib.sha256("\n".join(shards).encode()).hexdigest()

    @cached_property
    def image_offsets(self) -> np.ndarray:
        ends = [store.image_offsets[1:] for store in self._stores]
        before = np.cumsum([0, *(end[-1] for end in ends[:-1])])
        parts = [end + start for end, start in zip(ends, before, strict=True)]
        return np.concatenate([[0], *parts])

    @cached_property
    def image_sizes(self) -> np.ndarray:
        return np.concatenate([store.image_sizes for store in self._stores])

    @cached_property
    def text_lengths(self) -> np.ndarray:
        return np.concatenate([store.text_lengths for store in self._stores])

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        return np.concatenate([store.supervised_counts for store in self._stores])

    def _locate(self, index: int) -> tuple[Store, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"store {self.prefix}: no sample {index}, it has {len(self)} (from 0)")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._stores[number], index - int(self._starts[number])

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        store, place = self._locate(index)
        return store.sample(place)

    def record_source(self, index: int) -> str:
        store, place = self._locate(index)
        return store.record_source(place)

    def images(self, index: int) -> list[bytes]:
        store, place = self._locate(index)
        return store.images(place)

    def load(self, index: int, *, with_images: bool = True) -> Sample:
        store, place = self._locate(index)
        return store.load(place, with_images=with_images)
