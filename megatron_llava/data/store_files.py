"""The files of a store, by name; nothing here needs Megatron-core, whose import takes seconds."""

from pathlib import Path

import numpy as np

FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)  # 1 had no videos, 2 no sources
PIECES: dict[str, type] = {
    "tokens": np.int32,
    "mask": np.uint8,
    "images": np.uint8,
    "sizes": np.int32,
    "sources": np.uint8,
}
COUNTS = ("samples", "images", "videos", "tokens", "supervised_tokens", "image_bytes")
"""What a manifest counts; videos are among the images."""


def pieces_of(version: int) -> list[str]:
    """What a store of a format version has of PIECES."""
    return [piece for piece in PIECES if piece != "sources" or version >= 3]


def piece_files(prefix: str | Path, version: int = FORMAT_VERSION) -> list[Path]:
    """The files of a store beside its manifest, two for each piece."""
    suffixes = (".bin", ".idx")
    return [Path(f"{prefix}_{piece}{end}") for piece in pieces_of(version) for end in suffixes]


def manifest_file(prefix: str | Path) -> Path:
    """The manifest, written last: a prefix without it is no store."""
    return Path(f"{prefix}.json")


def check_output_prefix(prefix: str | Path, overwrite: bool) -> None:
    """Raise ValueError if `prefix` ends in no name, or a file of a store there exists and may not
    be replaced."""
    if not Path(prefix).name:
        raise ValueError(f"--output-prefix {prefix}: names no file: give one such as stores/data")
    existing = [path for path in (manifest_file(prefix), *piece_files(prefix)) if path.exists()]
    if existing and not overwrite:
        raise ValueError(
            f"{existing[0]} exists: choose another --output-prefix or give --overwrite"
        )
