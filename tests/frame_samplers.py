"""Functions for --frame-sampler."""

from __future__ import annotations

import numpy as np

from megatron_llava.vision.frame_sampler import VideoFrames


def sparse(video: VideoFrames) -> list[int]:
    """More and more time between frames: 0, 1, 3, 6, 10, ..."""
    numbers = [n * (n + 1) // 2 for n in range(video.frames_upbound)]
    return [number for number in numbers if number < video.num_frames]


def each_second(video: VideoFrames) -> np.ndarray:
    return np.arange(0, video.num_frames, round(video.fps))


def blue(video: VideoFrames) -> np.ndarray:
    """The bluest of the first 50 frames."""
    frames = video.decode(range(min(50, video.num_frames)))
    blues = [np.asarray(frame)[..., 2].mean() for frame in frames]
    return np.sort(np.argsort(blues)[-video.frames_upbound :])


def too_many(video: VideoFrames) -> range:
    return range(video.num_frames)


def fails(video: VideoFrames) -> list[int]:
    raise KeyError(video.num_frames)
