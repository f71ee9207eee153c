"""The files of a store, by name; nothing here needs Megatron-core, whose import takes seconds."""

from pathlib import Path

import numpy as np

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1 had no videos
PIECES: dict[str, type] = {
    "tokens": np.int32,
    "mask": np.uint8,
    "images": np.uint8,
    "sizes": np.int32,
}
COUNTS = ("samples", "images", "videos", "tokens", "supervised_tokens", "image_bytes")
"""What a manifest counts; videos are among the images."""


def piece_files(prefix: str | Path) -> list[Path]:
    """The eight files of a store beside its manifest."""
    return [Path(f"{prefix}_{piece}{suffix}") for piece in PIECES for suffix in (".bin", ".idx")]


def manifest_file(prefix: str | Path) -> Path:
    """The manifest, written last: a prefix without it is no store."""
    return Path(f"{prefix}.json")


def check_output_prefix(prefix: str | Path, overwrite: bool) -> None:
    """Raise ValueError if a file of a store at `prefix` exists and may not be replaced."""
    existing = [path for path in (manifest_file(prefix), *piece_files(prefix)) if path.exists()]
    if existing and not overwrite:
        raise ValueError(
            f"{existing[0]} exists: choose another --output-prefix or give --overwrite"
        )
