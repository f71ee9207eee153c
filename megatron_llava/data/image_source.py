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


def read_image(image: ImageSource, image_folder: Path | None, source: str) -> tuple[bytes, str]:
    """The encoded bytes of an image, and what messages call it.

    Raises:
        ValueError: one line that starts with `source`: a path that leads out of the image folder,
            no image folder for a path, or a file that cannot be read.
    """
    if isinstance(image, ImageBytes):
        return image.data, image.name
    if isinstance(image, FileSlice):
        return _read_slice(image, source), f"{image.path}: {image.name}"
    if image_folder is None:
        raise ValueError(f"{source}: names the image {image}; give --image-folder")
    path = image_folder / image
    # Data from elsewhere must not choose which files of this machine are read.
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(image_folder)):
        raise ValueError(
            f"{source}: image {image} is not inside --image-folder {image_folder}; give a folder "
            "that holds all images"
        )
    try:
        return path.read_bytes(), str(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{source}: cannot read image {path}: {reason}") from error


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
