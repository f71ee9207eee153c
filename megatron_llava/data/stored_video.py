"""A video as one item of a store: the numbers of its frames and the file as it was, or the files of
its frames. Nothing is encoded again, and decoding gives the frames that were chosen.

    b"MLV1" | n | n frame numbers (int32) | the video file
    b"MLF1" | n | n lengths (int32)       | the image files of the frames
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from megatron_llava.vision.frames import decode_frames
from megatron_llava.vision.tiles import open_image

_VIDEO, _FRAMES = b"MLV1", b"MLF1"


class StoredVideo(NamedTuple):
    """What goes into a store, and when its frames are.

    data: the item. num_frames: frames to be taken. seconds: of the whole video. times: seconds of
    each frame.
    """

    data: bytes
    num_frames: int
    seconds: float
    times: tuple[float, ...]


def pack_video(data: bytes, numbers: Sequence[int]) -> bytes:
    """The item of a video file of which the frames `numbers` are taken."""
    return _head(_VIDEO, numbers) + data


def pack_frames(frames: Sequence[bytes]) -> bytes:
    """The item of image files."""
    return _head(_FRAMES, [len(frame) for frame in frames]) + b"".join(frames)


def unpack_frames(item: bytes, source: str) -> list[Image.Image]:
    """The frames of an item, RGB.

    Raises:
        ValueError: one line that starts with `source`, for what cannot be decoded.
    """
    kind, count = item[:4], int(np.frombuffer(item, np.int32, 1, 4)[0])
    assert kind in (_VIDEO, _FRAMES), kind
    numbers = np.frombuffer(item, np.int32, count, 8).tolist()
    start = 8 + 4 * count
    if kind == _VIDEO:
        return decode_frames(item[start:], numbers, source)
    ends = (start + np.cumsum(numbers)).tolist()
    files = [item[end - size : end] for end, size in zip(ends, numbers, strict=True)]
    return [open_image(file, f"{source}: frame {n}") for n, file in enumerate(files)]


def _head(kind: bytes, numbers: Sequence[int]) -> bytes:
    return kind + np.array([len(numbers), *numbers], dtype=np.int32).tobytes()
