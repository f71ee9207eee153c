"""Streaming writer of sharded safetensors: memory stays at one shard, whatever the model's size."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from megatron_llava.convert.hf_reader import INDEX_FILE, SINGLE_FILE

MAX_SHARD_BYTES = 5 * 10**9  # the size that the hub's own files have


class HFWriter:
    """Writes tensors in the order of arrival into shards of at most `max_shard_bytes`.

    One shard becomes `model.safetensors`, several become `model-00001-of-0000N.safetensors` and an
    index. A tensor larger than the limit gets a shard of its own. Call `close()` to finish.
    """

    def __init__(self, folder: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        if max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes is {max_shard_bytes}; give at least 1")
        self.folder = Path(folder)
        self.max_shard_bytes = max_shard_bytes
        self.total_bytes = 0
        self._shards: list[list[str]] = []
        self._names: set[str] = set()
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Queue one tensor; ValueError where the name was already written."""
        if name in self._names:
            raise ValueError(f"tensor {name} is written twice")
        self._names.add(name)
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.max_shard_bytes:
            self._flush()
        # A view would drag its whole storage into the file, and shared storage is refused there.
        self._pending[name] = tensor.detach().cpu().clone().contiguous()
        self._pending_bytes += size
        self.total_bytes += size

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def _flush(self) -> None:
        save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending = {}
        self._pending_bytes = 0

    def close(self) -> None:
        """Write what is queued, give the shards their final names, write the index."""
        if self._pending:
            self._flush()
        if len(self._shards) == 1:
            self._part(0).rename(self.folder / SINGLE_FILE)
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file_name = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._part(number).rename(self.folder / file_name)
            weight_map.update(dict.fromkeys(names, file_name))
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self.folder / INDEX_FILE).write_text(text)
