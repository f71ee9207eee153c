"""Sharded safetensors, written tensor by tensor: memory stays at one tensor.

The format is the safetensors library's: the length of a JSON header (8 bytes, little endian), the
header, the bytes of the tensors. The library writes a whole file at once, so this does not use it;
tests read the files with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_llava.convert.flushed import FLUSH_BYTES, Flusher
from megatron_llava.convert.journal import Journal
from megatron_llava.convert.prefetched import Prefetched
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.tensor_source import TensorSource
from megatron_llava.convert.weight_files import DTYPES, byte_view
from megatron_llava.convert.weights_folder import CHECKSUM_FILE, INDEX_FILE, SINGLE_FILE

MAX_SHARD_BYTES = 5 * 10**9  # the size that the hub's own files have
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """One file and the tensors that it holds, in order."""

    file_name: str
    names: tuple[str, ...]


def plan_shards(source: TensorSource, max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """Deal tensors to files of at most `max_shard_bytes`; a larger tensor gets one of its own.

    One file is `model.safetensors`, several are `model-00001-of-0000N.safetensors`.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; give at least 1")
    groups: list[list[str]] = [[]]
    filled = 0
    for name in source.names():
        size = tensor_bytes(source, name)
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [Shard(SINGLE_FILE, tuple(groups[0]))]
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(names))
        for number, names in enumerate(groups, 1)
    ]


def tensor_bytes(source: TensorSource, name: str) -> int:
    """Bytes of one tensor."""
    return source.dtype(name).itemsize * torch.Size(source.shape(name)).numel()


def write_hf(
    folder: Path,
    source: TensorSource,
    journal: Journal,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write every tensor, an index where there are several files, and the checksums.

    journal: knows which files an earlier, interrupted call has written; they are kept.
    """
    shards = plan_shards(source, max_shard_bytes)
    checksums: dict[str, Any] = {}
    with Prefetched(source) as ahead, Flusher() as flusher:
        for shard in shards:
            done = journal.result(shard.file_name)
            if done is None:
                done = _write_shard(
                    folder / shard.file_name, shard, source, ahead, flusher, progress
                )
                record = partial(journal.record, shard.file_name, done)
                flusher.flush(folder / shard.file_name, record)
            checksums |= done
    if len(shards) > 1:
        weight_map = {name: shard.file_name for shard in shards for name in shard.names}
        total = sum(tensor_bytes(source, name) for name in source.names())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / INDEX_FILE, index)
    _write_json(folder / CHECKSUM_FILE, {"algorithm": "crc32", "tensors": checksums})


def _write_shard(
    path: Path,
    shard: Shard,
    source: TensorSource,
    ahead: Prefetched,
    flusher: Flusher,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write one file; dtype, shape and checksum of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in shard.names:
        start, end = end, end + tensor_bytes(source, name)
        header[name] = {
            "dtype": _CODES[source.dtype(name)],
            "shape": list(source.shape(name)),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    found, flushed = {}, 0
    with path.open("wb", buffering=0) as file:
        _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
        for name in shard.names:
            tensor, checksum = ahead.tensor(name)
            assert tuple(tensor.shape) == tuple(source.shape(name)), name
            assert tensor.dtype == source.dtype(name), name
            _write_all(file, byte_view(tensor))
            found[name] = {
                "dtype": header[name]["dtype"],
                "shape": header[name]["shape"],
                "crc32": checksum,
            }
            if progress is not None:
                progress.add(name, tensor)
            if file.tell() - flushed >= FLUSH_BYTES:
                flusher.flush(path)
                flushed = file.tell()
    return found


def _write_all(file: Any, content: memoryview) -> None:
    while len(content):
        content = content[file.write(content) :]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
