"""Where the encoded bytes of an image are, and reading them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageBytes:
    """An image that the record itself holds (a column of a parquet file).

    name: as messages call it.
    """

    data: bytes
    name: str


@dataclass(frozen=True)
class FileSlice:
    """An image inside a larger file: `size` bytes from `offset` on (a member of a tar file)."""

    path: Path
    offset: int
    size: int
    name: str


ImageSource = str | ImageBytes | FileSlice
"""A str is a path relative to the image folder."""


def read_image(
    image: ImageSource, image_folder: Path | None, source: str, kind: str = "image"
) -> tuple[bytes, str]:
    """The encoded bytes of an image (or video: kind), and what messages call it.

    Raises:
        ValueError: one line that starts with `source`: a path that leads out of the image folder,
            no image folder for a path, or a file that cannot be read.
    """
    if isinstance(image, ImageBytes):
        return image.data, image.name
    if isinstance(image, FileSlice):
        return _read_slice(image, source), f"{image.path}: {image.name}"
    path = str(inside(image, image_folder, source, kind))
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(), path
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{source}: cannot read {kind} {path}: {reason}") from error


def inside(name: str, folder: Path | None, source: str, kind: str) -> Path:
    """The path of a name, which must lie in the folder.

    Raises:
        ValueError: it does not, or there is no folder; one line that starts with `source`.
    """
    if folder is None:
        raise ValueError(f"{source}: names the {kind} {name}; give --{kind}-folder")
    path = folder / name
    # Data from elsewhere must not choose which files of this machine are read.
    root = os.path.join(os.path.abspath(folder), "")
    # The slash at both ends: "images2" is not inside "images", and "images" itself is.
    if not f"{os.path.normpath(os.path.join(root, name))}/".startswith(root):
        raise ValueError(
            f"{source}: {kind} {name} is not inside --{kind}-folder {folder}; give a folder that "
            f"holds all {kind}s"
        )
    return path


def _read_slice(image: FileSlice, source: str) -> bytes:
    try:
        with image.path.open("rb") as file:
            file.seek(image.offset)
            data = file.read(image.size)
    except OSError as error:
        raise ValueError(f"{source}: cannot read {image.path}: {error.strerror}") from error
    if len(data) < image.size:
        raise ValueError(f"{source}: {image.path}: truncated in {image.name}")
    return data
