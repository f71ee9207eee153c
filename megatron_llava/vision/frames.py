"""Frames of a video: which ones are taken, decoding them, and the views that the tower sees.

Sampling is LLaVA-NeXT's (process_video_with_decord): every round(fps / video_fps)-th frame, and
where those are more than `frames_upbound`, or with `force_sample` always, that many spread evenly
from the first frame to the last.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.user_function import load_function
from megatron_llava.vision.frame_sampler import FLAG
from megatron_llava.vision.tiles import square_view

FOLDER_FPS = 2.0
"""What LLaVA-NeXT takes the frames of a folder for."""
FOLDER_FRAMES = 10
"""How many of them it takes, unless `force_sample` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """The flags --video-fps, --frames-upbound, --force-sample, --all-frames and --frame-sampler.

    Raises:
        ValueError: one line naming the flag.
    """

    video_fps: int = 1
    """Frames to take per second."""

    frames_upbound: int = 32
    """Most frames of a video; 0 for no bound."""

    force_sample: bool = False
    """Take exactly frames_upbound frames of every video."""

    all_frames: bool = False
    """Take every frame of every video."""

    frame_sampler: str | None = None
    """`package.module:function` that chooses the frames, at most frames_upbound: see
    `frame_sampler.chosen_frames`."""

    def __post_init__(self) -> None:
        if self.video_fps < 1:
            raise ValueError(f"--video-fps {self.video_fps}: expected at least 1")
        if self.frames_upbound < 0:
            raise ValueError(f"--frames-upbound {self.frames_upbound}: expected 0 or more")
        if self.force_sample and not self.frames_upbound:
            raise ValueError("--force-sample takes --frames-upbound frames: give that, above 0")
        sampled = (self.video_fps, self.frames_upbound, self.force_sample)
        if self.all_frames and sampled != (1, 32, False):
            raise ValueError(
                "--all-frames takes every frame: drop --video-fps, --frames-upbound and "
                "--force-sample"
            )
        if self.frame_sampler is None:
            return
        if self.all_frames or self.video_fps != 1 or self.force_sample:
            raise ValueError(
                f"{FLAG} {self.frame_sampler} chooses the frames: drop --video-fps, --force-sample "
                "and --all-frames"
            )
        load_function(FLAG, self.frame_sampler)


def sampled_frames(num_frames: int, fps: float, sampling: FrameSampling) -> NDArray[np.int64]:
    """Numbers of the frames to take of `num_frames` > 0 at `fps` per second where no function of
    the user's chooses; repeats are possible where fewer are there than have to be taken."""
    if sampling.all_frames:
        return np.arange(num_frames)
    # LLaVA-NeXT fails below half a frame per wanted one; every frame is what it would mean.
    step = max(round(fps / sampling.video_fps), 1)
    taken = np.arange(0, num_frames, step)
    bound = sampling.frames_upbound
    if bound and (len(taken) > bound or sampling.force_sample):
        return spread_frames(num_frames, bound)
    return taken


def spread_frames(num_frames: int, count: int) -> NDArray[np.int64]:
    """`count` frames from the first to the last, evenly spread and rounded down."""
    return np.linspace(0, num_frames - 1, count, dtype=np.int64)


def video_length(data: bytes, source: str) -> tuple[int, float]:
    """Frames of a video, and frames per second on average.

    Raises:
        ValueError: the bytes are no video.
    """
    with _opened(data, source) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 0)
        count = int(stream.frames)
        if count == 0:  # not every container says; packets of a video stream hold one frame each
            count = sum(1 for packet in container.demux(stream) if packet.size)
    if count < 1 or fps <= 0:
        raise ValueError(f"{source}: a video of {count} frames at {fps} per second")
    return count, fps


def decode_frames(data: bytes, numbers: Sequence[int], source: str) -> list[Image.Image]:
    """Frames of a video by their numbers (ascending), as RGB.

    Raises:
        ValueError: the bytes are no video, are damaged, or end before the last frame.
    """
    wanted, found = set(numbers), {}
    with _opened(data, source) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found[number] = Image.fromarray(frame.to_ndarray(format="rgb24"))
            if number >= numbers[-1]:
                break
    if len(found) < len(wanted):
        raise ValueError(
            f"{source}: ends after {max(found, default=-1) + 1} frames or so, frame {numbers[-1]} "
            "is not there"
        )
    return [found[number] for number in numbers]


def frame_views(frames: Sequence[Image.Image], settings: ImageSettings) -> NDArray[np.uint8]:
    """uint8 [F, 3, S, S]: one view of each frame, made as of a picture with 'square'."""
    side, mode = settings.tile_size, settings.resize_mode
    views = [np.asarray(square_view(frame, side, mode)) for frame in frames]
    return np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))


class _opened:
    """A container of PyAV; what it raises becomes a ValueError in one line."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data, self._source = data, source

    def __enter__(self) -> Any:
        try:
            import av
        except ImportError:
            raise ValueError(f"{self._source}: videos need PyAV: pip install av") from None
        self._errors = av.error.FFmpegError
        try:
            self._container = av.open(io.BytesIO(self._data))
        except self._errors as error:
            raise self._unreadable(error) from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self._source}: no video stream")
        return self._container

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._container.close()
        if isinstance(error, self._errors):
            raise self._unreadable(error) from None

    def _unreadable(self, error: BaseException) -> ValueError:
        reason = " ".join(str(error).split())
        return ValueError(
            f"{self._source}: cannot read a video from its {len(self._data)} bytes: {reason}"
        )
