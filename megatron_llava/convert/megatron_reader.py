"""The parameters of a `torch_dist` checkpoint, read one at a time, whatever layout wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_llava.config.lora import LoraConfig
from megatron_llava.convert.adapter_rules import TOWER, is_adapter_part
from megatron_llava.convert.convert import check_shapes
from megatron_llava.convert.places import Place, places
from megatron_llava.convert.rules import Shape
from megatron_llava.convert.single_process import single_process
from megatron_llava.convert.weights_folder import check_checksum, read_checksums
from megatron_llava.parallel.adapter_record import refuse_adapters
from megatron_llava.parallel.checkpoint_directory import (
    CheckpointError,
    Iteration,
    find_checkpoint,
    iteration_directory,
    latest_iteration,
)
from megatron_llava.parallel.checkpoint_files import check_stored, read_metadata

VOCABULARY = ("word_embeddings.weight", "output_layer.weight")
# Of a training checkpoint, what is no parameter of the model.
OTHER_STATE = ("optimizer", "rng_state", "chained_")


class MegatronReader:
    """A TensorSource of Megatron names, one rank's whole parameters with an unpadded vocabulary.

    Args:
        root: folder of checkpoints.
        mapping: the model, as `read_root_mapping` gives it.
        iteration: which checkpoint; the latest where None.
        lora: the adapters that the folder holds, with what was trained beside them; a folder of
            whole models where None.

    Raises:
        ValueError: there is none, it cannot be read, or its tensors are not those of the mapping.
    """

    def __init__(
        self,
        root: Path,
        mapping: dict[str, Any],
        iteration: Iteration | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        if lora is None:
            refuse_adapters(root)
        chosen = latest_iteration(root) if iteration is None else iteration
        if chosen is None:
            raise ValueError(f"{root}: no checkpoint there; give the folder that --save named")
        directory = find_checkpoint(root, chosen)
        if directory is None:
            raise ValueError(f"{iteration_directory(root, chosen)}: no such checkpoint")
        self.directory = directory
        self._checksums = read_checksums(directory)
        with single_process():
            self._places, _ = places(mapping, lora)
        self._reader = FileSystemReader(directory)
        self._metadata = read_metadata(directory)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._tensors = {
            key: entry
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not key.startswith(OTHER_STATE)
        }
        if lora is not None:
            self._places = self._held_beside_adapters()
        self._check(mapping["vocab_size"])

    def _held_beside_adapters(self) -> dict[str, Place]:
        """Adapters, projector and newline have to be there; the tower is where it was trained."""
        has_tower = any(key.startswith(TOWER) for key in self._tensors)
        return {
            name: place
            for name, place in self._places.items()
            if is_adapter_part(name) or (has_tower and name.startswith(TOWER))
        }

    def _check(self, vocab_size: int) -> None:
        expected = {place.key: place.global_shape for place in self._places.values()}
        found = {key: tuple(entry.size) for key, entry in self._tensors.items()}
        for key, shape in expected.items():
            # Training pads the vocabulary.
            padded = shape[:1] == (vocab_size,) and key.endswith(VOCABULARY)
            if padded and key in found and found[key][0] > vocab_size:
                found[key] = (vocab_size, *found[key][1:])
        check_shapes(str(self.directory), dict(expected), found)
        for key, entry in self._tensors.items():
            for chunk in entry.chunks:
                if MetadataIndex(key, chunk.offsets) not in self._metadata.storage_data:
                    raise CheckpointError(f"{self.directory}: no file is named for {key}")
        check_stored(self.directory, self._metadata)

    def fingerprint(self) -> list[list[str | int]]:
        """What tells this checkpoint from others: name, size and time of its files."""
        paths = sorted(path for path in self.directory.iterdir() if path.is_file())
        stats = [(path, path.stat()) for path in paths]
        return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> Shape:
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = self._tensors[self._places[name].key].properties.dtype
        return dtype

    def tensor(self, name: str) -> Tensor:
        """Read the parameter from the chunks that overlap it.

        Raises:
            ValueError: a chunk cannot be read, or its bytes are not those that were converted.
        """
        place = self._places[name]
        wanted = ChunkStorageMetadata(torch.Size(place.offsets), torch.Size(place.sizes))
        items = create_read_items_for_chunk_list(place.key, self._tensors[place.key], [wanted])
        covered, needed = sum(item.lengths.numel() for item in items), wanted.sizes.numel()
        if covered != needed:  # a hole would silently hold anything
            raise CheckpointError(
                f"{self.directory}: chunks of {place.key} cover {covered} of {needed} "
                f"numbers of {name}"
            )
        try:
            found = self._read(items, wanted.sizes).reshape(place.shape)
        except Exception as error:  # zip, pickle, OS and shape errors of a damaged file
            raise CheckpointError(
                f"{self.directory}: {name} cannot be read ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''})"
            ) from None
        if found.dtype != self.dtype(name):
            raise CheckpointError(
                f"{self.directory}: {name} is {found.dtype} and should be {self.dtype(name)}"
            )
        check_checksum(str(self.directory), name, found, self._checksums)
        return found

    def _read(self, items: list[ReadItem], sizes: torch.Size) -> Tensor:
        """Put the chunks together; what is stored as one chunk is not copied again.

        torch's own reader copies every chunk, which costs as much as reading it.
        """
        if len(items) == 1 and items[0].lengths == sizes:
            return self._chunk(items[0])
        first = self._chunk(items[0])
        target = first.new_empty(sizes)
        for number, item in enumerate(items):
            part = self._chunk(item) if number else first
            assert part.dtype == target.dtype, f"chunks of {part.dtype} and {target.dtype}"
            _narrowed(target, item.dest_offsets, item.lengths).copy_(part)
        return target

    def _chunk(self, item: ReadItem) -> Tensor:
        info = self._metadata.storage_data[item.storage_index]
        with (self.directory / info.relative_path).open("rb") as file:
            view = cast(IO[bytes], _create_file_view(file, info.offset, info.length))
            stored: Tensor = torch.load(view, map_location="cpu", weights_only=True)
        return _narrowed(stored, item.storage_offsets, item.lengths)


def _narrowed(tensor: Tensor, offsets: torch.Size, lengths: torch.Size) -> Tensor:
    for dimension, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dimension, start, length)
    return tensor
