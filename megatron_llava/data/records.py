"""LLaVA training records: one JSON list, or JSON lines, with the place where each record was read.

A record is an object with `conversations` (a list of turns), an optional `id`, and optional `image`
and `video` (one path or a list of paths, relative to the image or video folder). The chat formats'
`messages`, `images` and `videos` are read as well; every other key is ignored. The layout is the
one of LLaVA's published instruction files.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from megatron_llava.data.image_source import FileSlice, ImageBytes, ImageSource
from megatron_llava.text.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from megatron_llava.text.conversation import turns_from_record
from megatron_llava.text.templates import Turn


@dataclass(frozen=True, kw_only=True)
class Record:
    """One conversation with its images.

    Attributes:
        id: the record's own id as text, '' where it has none.
        images: paths as written in the file, or where the bytes are, in the order of their
            placeholders.
        videos: the same of videos.
        turns: at least one turn.
        source: 'file:line' for JSON lines, 'file: record 17 (id=...)' for a JSON list, counted
            from 0; it begins every message about the record.
    """

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    source: str
    videos: tuple[ImageSource, ...] = ()


@dataclass(frozen=True)
class WithImages:
    """A raw record whose images and videos lie beside it.

    Attributes:
        text: a JSON object, or a caption of all the images; None where there is neither.
        is_caption: which of the two.
        images, videos: all those of the record.
    """

    text: bytes | None
    is_caption: bool
    images: tuple[FileSlice, ...]
    videos: tuple[FileSlice, ...] = ()


class RecordFile:
    """The raw records of one file, in order.

    Iterating yields `(source, raw)`. `raw` is the unparsed line of a JSON lines file, or the
    decoded element of a JSON list; `parse_record` takes either, so a bad record is not a bad file.

    Raises:
        ValueError: the file is missing, has another suffix, holds no record, or is not a JSON list.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".json", ".jsonl"):
            raise ValueError(f"{self.path}: expected a .json or .jsonl file")
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        self._items: list[Any] | None = None
        if self.path.suffix == ".json":
            self._items = _read_json_list(self.path)
            self._count = len(self._items)
        else:
            with self.path.open("rb") as stream:
                self._count = sum(1 for line in stream if line.strip())
        if self._count == 0:
            raise ValueError(f"{self.path}: holds no record")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        if self._items is not None:
            for index, item in enumerate(self._items):
                name = f" (id={item['id']})" if isinstance(item, dict) and "id" in item else ""
                yield f"{self.path}: record {index}{name}", item
            return
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{self.path}:{number}", line

    def chosen(self, wanted: NDArray[Any]) -> Iterator[tuple[str, Any]]:
        """Only the records that are wanted: bool [records]."""
        return compress(self, wanted.tolist())


def _read_json_list(path: Path) -> list[Any]:
    try:
        items = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid UTF-8 at byte {error.start}") from error
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a JSON list of records, found {_kind(items)}")
    return items


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), f"the value {value!r}")


def parse_record(raw: Any, source: str) -> Record:
    """Check one raw record of a `RecordFile`.

    Raises:
        ValueError: one line that starts with `source`.
    """
    beside: WithImages | None = None
    if isinstance(raw, WithImages):
        if raw.text is None:
            raise ValueError(f"{source}: has neither a .json nor a .txt")
        if raw.is_caption:
            return _captioned(raw.text, raw, source)
        beside, raw = raw, raw.text
    raw = decoded_record(raw, source)
    images = _images(_either(raw, "image", "images", source), source)
    videos = _images(_either(raw, "video", "videos", source), source, "video")
    if beside is not None:
        images = _found(images, beside.images, source, "image")
        # Videos may lie in --video-folder all the same.
        videos = _found(videos, beside.videos, source, "video") if beside.videos else videos
    return Record(
        id=str(raw.get("id", "")),
        images=images,
        turns=_turns(_either(raw, "conversations", "messages", source), source),
        source=source,
        videos=videos,
    )


def decoded_record(raw: Any, source: str) -> dict[str, Any]:
    """The object that a raw record of a `RecordFile` is.

    Raises:
        ValueError: it is none; one line that starts with `source`.
    """
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: not valid JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}: not valid UTF-8 at byte {error.start}") from error
        except ValueError as error:  # a number of thousands of digits
            raise ValueError(f"{source}: not valid JSON: {error}") from error
        except RecursionError:
            raise ValueError(f"{source}: not valid JSON: nested too deeply") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{source}: expected an object, found {_kind(raw)}")
    return raw


def _captioned(text: bytes, beside: WithImages, source: str) -> Record:
    try:
        caption = text.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not valid UTF-8 at byte {error.start}") from error
    placeholders = [IMAGE_PLACEHOLDER] * len(beside.images)
    placeholders += [VIDEO_PLACEHOLDER] * len(beside.videos)
    turns = (Turn("human", "\n".join(placeholders)), Turn("gpt", caption))
    return Record(id="", images=beside.images, turns=turns, source=source, videos=beside.videos)


def _either(raw: dict[str, Any], ours: str, other: str, source: str) -> Any:
    """The value of one of two keys."""
    if raw.get(ours) is not None and raw.get(other) is not None:
        raise ValueError(f"{source}: has both {ours!r} and {other!r}; which one counts is unclear")
    return raw.get(ours) if raw.get(ours) is not None else raw.get(other)


def _found(
    named: tuple[ImageSource, ...], members: tuple[FileSlice, ...], source: str, kind: str
) -> tuple[ImageSource, ...]:
    """The members of a sample that a record names, all of them where it names none."""
    return tuple(_beside(name, members, source, kind) for name in named) if named else members


def _beside(name: ImageSource, members: tuple[FileSlice, ...], source: str, kind: str) -> FileSlice:
    """The member of a sample that a record names by its file name, or the end of it."""
    assert isinstance(name, str)
    found = [m for m in members if f"/{m.name}".endswith((f"/{name}", f".{name}"))]
    if len(found) != 1:
        raise ValueError(
            f"{source}: {len(found)} {kind}s of the sample are called {name}; it has "
            f"{[member.name for member in members]}"
        )
    return found[0]


def _images(value: Any, source: str, kind: str = "image") -> tuple[ImageSource, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(_image(item, number, source, kind) for number, item in enumerate(items))


def _image(item: Any, number: int, source: str, kind: str) -> ImageSource:
    """One image or video: a path, bytes, or the {bytes, path} of Hugging Face datasets."""
    name = f"{kind} {number} of the record"
    if isinstance(item, Mapping):
        data, path = item.get("bytes"), item.get("path")
        item = data if isinstance(data, bytes) else path
        name = path or name if isinstance(path, str) else name
    if isinstance(item, bytes):
        return ImageBytes(item, name)
    if not isinstance(item, str) or not item:
        raise ValueError(f"{source}: {kind!r} must be a path or a list of paths")
    return item


def _turns(value: Any, source: str) -> tuple[Turn, ...]:
    if not value:
        raise ValueError(f"{source}: no 'conversations', expected a list of at least one turn")
    return tuple(turns_from_record(value, source))
