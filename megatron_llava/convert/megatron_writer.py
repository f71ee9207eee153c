"""A `torch_dist` checkpoint of the whole model, written parameter by parameter.

Core's own writer holds everything that it writes in memory. This one hands torch's writer a plan
whose tensors are made when their turn comes, in parts that an interrupted call need not repeat.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.serialization import get_crc32_options, set_crc32_options

from megatron_llava.config.lora import LoraConfig
from megatron_llava.convert.flushed import Flusher
from megatron_llava.convert.journal import Journal
from megatron_llava.convert.places import Place, places
from megatron_llava.convert.prefetched import Prefetched
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.tensor_source import TensorSource
from megatron_llava.convert.weight_files import byte_view
from megatron_llava.convert.weights_folder import CHECKSUM_FILE

PART_BYTES = 10**9


def write_megatron(
    directory: Path,
    mapping: dict[str, Any],
    source: TensorSource,
    journal: Journal,
    progress: Progress | None = None,
    part_bytes: int = PART_BYTES,
    lora: LoraConfig | None = None,
) -> None:
    """Write the parameters of `source` to a checkpoint folder; inside `single_process` only.

    journal: knows which parts an earlier, interrupted call has written; they are kept. lora: the
    adapters that are among them, of which a checkpoint holds no more than `source` has.
    """
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.strategies.base import (
        StrategyAction,
        get_default_strategy,
    )

    directory.mkdir(exist_ok=True)
    found, objects = places(mapping, lora)
    if lora is not None:
        objects = {}
    with Prefetched(source) as ahead:
        planner = _LazyPlanner(source, ahead, found, objects, progress)
        _write_parts(directory, planner, journal, part_bytes)
    get_default_strategy(StrategyAction.SAVE_COMMON, "torch", 1).save_common({}, directory)
    save_config(CheckpointingConfig("torch_dist", 1), str(directory))


def _write_parts(directory: Path, planner: _LazyPlanner, journal: Journal, part_bytes: int) -> None:
    """Write every part that is not there yet, the metadata and the checksums."""
    plans = [SavePlan(items) for items in planner.parts(part_bytes)]
    plans, metadata = create_default_global_save_plan(plans)
    writer = FileSystemWriter(
        directory, single_file_per_rank=True, sync_files=False, thread_count=1
    )
    writer.set_up_storage_writer(is_coordinator=True)
    results: list[list[WriteResult]] = []
    checksums: dict[str, Any] = {}
    with Flusher() as flusher, _without_zip_checksums():
        for number, plan in enumerate(writer.prepare_global_plan(plans)):
            step = f"part {number}"
            done = journal.result(step)
            if done is None:
                planner.checksums.clear()
                written = writer.write_data(plan, planner).value()
                items = [_as_json(result) for result in written]
                done = {"items": items, "checksums": dict(planner.checksums)}
                for name in sorted({item["file"] for item in items}):
                    flusher.flush(directory / name)
                flusher.flush(directory, partial(journal.record, step, done))
            results.append([_from_json(entry) for entry in done["items"]])
            checksums |= {name: {"crc32": value} for name, value in done["checksums"].items()}
    writer.finish(metadata, results)
    text = json.dumps({"algorithm": "crc32", "tensors": checksums}, indent=2, sort_keys=True)
    (directory / CHECKSUM_FILE).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _without_zip_checksums() -> Iterator[None]:
    """Have torch.save not sum what it writes: its CRC takes as long as the disk, and we have ours.

    torch.load does not look at it.
    """
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


class _LazyPlanner(DefaultSavePlanner):
    """Says what is written where, and makes each tensor when torch's writer asks for it."""

    def __init__(
        self,
        source: TensorSource,
        ahead: Prefetched,
        found: dict[str, Place],
        objects: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        super().__init__()
        self._source, self._ahead = source, ahead
        self._places, self._objects = found, objects
        self._progress = progress
        self._names = {(place.key, place.layer): name for name, place in found.items()}
        self.checksums: dict[str, str] = {}  # of the parameters made since it was cleared
        self._last: tuple[str, Tensor] | None = None

    def parts(self, part_bytes: int) -> Iterator[list[WriteItem]]:
        """The items of files of about so many bytes each."""
        items = [
            WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO) for key in self._objects
        ]
        filled = 0
        for name in self._source.names():
            place, dtype = self._places[name], self._source.dtype(name)
            size = torch.Size(place.sizes).numel() * dtype.itemsize
            if filled and filled + size > part_bytes:
                yield items
                items, filled = [], 0
            items += _items(place, dtype)
            filled += size
        yield items

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """The numbers of one item (torch's protocol)."""
        key = write_item.index.fqn
        if write_item.type == WriteItemType.BYTE_IO:
            content = io.BytesIO()
            torch.save([self._objects[key]], content)
            return content
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        axes = len(next(p for p in self._places.values() if p.key == key).layer)
        name = self._names[key, tuple(chunk.offsets[:axes])]
        whole = self._parameter(name).reshape(self._places[name].sizes)
        for dimension in range(axes, len(chunk.sizes)):
            whole = whole.narrow(dimension, chunk.offsets[dimension], chunk.sizes[dimension])
        return _with_storage_of_its_own_size(whole)

    def _parameter(self, name: str) -> Tensor:
        # The halves of a parameter are asked for one after the other.
        if self._last is None or self._last[0] != name:
            self._last = None
            tensor, self.checksums[name] = self._ahead.tensor(name)
            self._last = name, tensor
            if self._progress is not None:
                self._progress.add(name, tensor)
        return self._last[1]


def _with_storage_of_its_own_size(tensor: Tensor) -> Tensor:
    """The same memory: torch.save would store a view with everything that it is a view of."""
    if tensor.nbytes == tensor.untyped_storage().nbytes():
        return tensor
    return torch.frombuffer(byte_view(tensor), dtype=tensor.dtype).reshape(tensor.shape)


def _items(place: Place, dtype: torch.dtype) -> Iterator[WriteItem]:
    """One item, or one for each half."""
    axis = len(place.layer)
    count = 2 if place.halves else 1
    sizes = list(place.sizes)
    sizes[axis] //= count
    for number in range(count):
        offsets = list(place.offsets)
        offsets[axis] = number * sizes[axis]
        offset = torch.Size(offsets)
        yield WriteItem(
            index=MetadataIndex(place.key, offset),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offset, torch.Size(sizes)),
                properties=TensorProperties(dtype=dtype),
                size=torch.Size(place.global_shape),
            ),
        )


def _as_json(result: WriteResult) -> dict[str, Any]:
    offset = result.index.offset
    return {
        "key": result.index.fqn,
        "offset": None if offset is None else list(offset),
        "index": result.index.index,
        "size": result.size_in_bytes,
        "file": result.storage_data.relative_path,
        "start": result.storage_data.offset,
        "length": result.storage_data.length,
    }


def _from_json(entry: dict[str, Any]) -> WriteResult:
    offset = entry["offset"]
    return WriteResult(
        index=MetadataIndex(
            entry["key"], None if offset is None else torch.Size(offset), entry["index"]
        ),
        size_in_bytes=entry["size"],
        storage_data=_StorageInfo(entry["file"], entry["start"], entry["length"]),
    )
