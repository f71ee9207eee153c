"""One conversation with its images, as a store gives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation as the collator takes it.

    Attributes:
        token_ids: int32 [n], IMAGE_TOKEN_INDEX at each image.
        label_mask: uint8 [n], 1 where the token is a supervised label.
        image_sizes: (width, height) of each image, in pixels; (frames, 0) of a video.
        images: encoded bytes of each image, a video's as `unpack_frames` takes them; of a store
            they are read when they are asked for. None where only the layout is wanted.
        source: names the sample in messages.
    """

    token_ids: np.ndarray
    label_mask: np.ndarray
    image_sizes: tuple[tuple[int, int], ...]
    images: Sequence[bytes] | None
    source: str


class StoredImages(Sequence[bytes]):
    """The images of one sample, each read from the store whenever it is asked for.

    Ranks that share the views of a pack read those images only that they decode.
    """

    def __init__(self, read: Callable[[int], bytes], numbers: range) -> None:
        self._read, self._numbers = read, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return StoredImages(self._read, self._numbers[index])
        return self._read(self._numbers[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


class SampleStore(Protocol):
    """What schedules and loaders ask of a store."""

    prefix: Path

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def image_offsets(self) -> np.ndarray: ...

    @property
    def image_sizes(self) -> np.ndarray: ...

    @property
    def text_lengths(self) -> np.ndarray: ...

    def check_tokenizer(self, fingerprint: str) -> None: ...

    def load(self, index: int, *, with_images: bool = True) -> Sample: ...
