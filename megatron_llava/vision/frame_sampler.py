"""Frames of a video that a function of the user's own chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_llava.config.user_function import load_function

FLAG = "--frame-sampler"


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The video that a function of --frame-sampler is given; it returns increasing frame numbers.

    Attributes:
        source: the record and the file or folder, as messages name them.
        num_frames: of the video, numbered from 0.
        fps: frames per second on average.
        frames_upbound: most frames that may be taken; 0 for no bound.
        decode: some frames as RGB, by their increasing numbers; of a file all frames before the
            last one of them are decoded, each time.
    """

    source: str
    num_frames: int
    fps: float
    frames_upbound: int
    decode: Callable[[Sequence[int]], list[Image.Image]]


def chosen_frames(name: str, video: VideoFrames) -> NDArray[np.int64]:
    """The numbers of the frames that the function `name` (MODULE:FUNCTION) takes of a video.

    Raises:
        ValueError: one line naming the video and the flag: the function failed, or returned
            anything but increasing numbers of frames that are there, at most the bound.
    """
    function = load_function(FLAG, name)
    by = f"{video.source}: {FLAG} {name}"
    try:
        numbers = np.asarray(function(video))
    except Exception as error:  # the user's code
        raise ValueError(
            f"{by} failed: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if numbers.size == 0:
        raise ValueError(f"{by} takes 0 of {video.num_frames} frames: expected at least 1")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{by} returned {numbers.dtype} {list(numbers.shape)}, expected a list of frame numbers"
        )
    numbers = numbers.astype(np.int64)
    outside = numbers[(numbers < 0) | (numbers >= video.num_frames)]
    if len(outside):
        raise ValueError(
            f"{by} takes frame {outside[0]} of {video.num_frames}: expected 0 to "
            f"{video.num_frames - 1}"
        )
    (back,) = np.nonzero(np.diff(numbers) <= 0)
    if len(back):
        before, after = numbers[back[0] : back[0] + 2]
        raise ValueError(f"{by} takes frame {after} after frame {before}: expected increasing ones")
    if 0 < video.frames_upbound < len(numbers):
        raise ValueError(
            f"{by} takes {len(numbers)} frames, more than --frames-upbound {video.frames_upbound}"
        )
    return numbers
