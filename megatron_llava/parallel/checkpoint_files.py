"""Whether the files of a checkpoint are whole, before anything is read from them."""

from __future__ import annotations

import json
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from megatron_llava.parallel.agreement import failure, is_first_rank
from megatron_llava.parallel.checkpoint_directory import CheckpointError


def check_checkpoint(directory: Path) -> None:
    """Have the first rank look at the files of a checkpoint, for all ranks together.

    Core and torch would name no file, or another one, and print a traceback.

    Raises:
        CheckpointError: one is missing or damaged; the same on every rank.
    """

    def look() -> None:
        if is_first_rank():
            _check_description(directory / "metadata.json")
            check_stored(directory, read_metadata(directory))

    reason = failure(look)
    if reason:
        raise CheckpointError(reason)


def read_metadata(directory: Path) -> Metadata:
    """Which tensor is in which file.

    Raises:
        CheckpointError: the file that says so cannot be read.
    """
    try:
        metadata: Metadata = FileSystemReader(directory).read_metadata()
    except Exception as error:  # pickle raises anything for a file that is none
        raise CheckpointError(
            f"{directory}/.metadata: cannot be read ({type(error).__name__})"
        ) from None
    return metadata


def check_stored(directory: Path, metadata: Metadata) -> None:
    """Raise CheckpointError where a file is missing or too short for what it should hold."""
    sizes: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        path = directory / info.relative_path
        if info.relative_path not in sizes:
            if not path.is_file():
                raise CheckpointError(
                    f"{directory}: the file of {index.fqn} is missing ({path.name})"
                )
            sizes[info.relative_path] = path.stat().st_size
        size, end = sizes[info.relative_path], info.offset + info.length
        if size < end:
            raise CheckpointError(f"{path}: truncated: {size} bytes, and {index.fqn} ends at {end}")


def _check_description(path: Path) -> None:
    """Core's own file, which says of what format a checkpoint is."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__})") from None
