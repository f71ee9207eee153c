"""Records in tar files in the layout of WebDataset, read in place.

Files of one sample stand one behind the other and have one name up to the first dot of the base
name: `000017.json` (a record) or `000017.txt` (a caption), and its images, `000017.jpg`, or
`000017.0.jpg` and `000017.1.jpg`, or videos. A record that names no image has all of them, in their
order; the same of videos.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_llava.data.image_source import FileSlice
from megatron_llava.data.records import WithImages

VIDEO_SUFFIXES = ("mp4", "m4v", "mkv", "webm", "mov", "avi")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class TarRecords:
    """The samples of one tar file; opening reads the headers of its members.

    Raises:
        ValueError: the file is compressed, damaged or holds no sample.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        members = self._members()
        self._samples = [(key, list(group)) for key, group in groupby(members, _key)]
        if not self._samples:
            raise ValueError(f"{self.path}: holds no record")

    def _members(self) -> list[FileSlice]:
        try:
            with tarfile.open(self.path, "r:") as archive:
                found = [m for m in archive if m.isfile()]
                end = archive.offset
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"{self.path}: not an uncompressed tar file, or damaged ({error}); files are read "
                "in place, so unpack a .gz first"
            ) from None
        size = self.path.stat().st_size
        if end > size:
            raise ValueError(f"{self.path}: truncated: {size} bytes, and its members end at {end}")
        return [FileSlice(self.path, m.offset_data, m.size, m.name) for m in found]

    def __len__(self) -> int:
        return len(self._samples)

    def chosen(self, wanted: NDArray[Any]) -> Iterator[tuple[str, Any]]:
        """Only the samples that are wanted: bool [samples]."""
        with self.path.open("rb") as file:
            for number in np.flatnonzero(wanted).tolist():
                key, members = self._samples[number]
                images = tuple(m for m in members if _suffix(m.name) in IMAGE_SUFFIXES)
                videos = tuple(m for m in members if _suffix(m.name) in VIDEO_SUFFIXES)
                source = f"{self.path}: sample {key}"
                texts = {_suffix(m.name): m for m in members}
                text = texts.get("json") or texts.get("txt")
                content = None
                if text is not None:
                    file.seek(text.offset)
                    content = file.read(text.size)
                yield source, WithImages(content, "json" not in texts, images, videos)


def _key(member: FileSlice) -> str:
    folder, slash, base = member.name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()
