"""The command-line flags of images and videos that several tools share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_llava.data.visuals import VisualSettings
from megatron_llava.vision.frame_sampler import FLAG
from megatron_llava.vision.frames import FrameSampling


def add_video_flags(parser: argparse.ArgumentParser) -> None:
    """Which frames of a video are taken, and where videos are."""
    add = parser.add_argument
    add("--video-folder", type=Path, help="the same of videos (default: the image folder)")
    add("--video-fps", type=int, default=1, help="frames per second of a video (default: 1)")
    add(
        "--frames-upbound",
        type=int,
        default=32,
        help="spread this many frames over a longer video; 0 for no bound (default: 32)",
    )
    add("--force-sample", action="store_true", help="take --frames-upbound frames of every video")
    add("--all-frames", action="store_true", help="take every frame of every video")
    add(
        FLAG,
        metavar="MODULE:FUNCTION",
        help="takes a megatron_llava.vision.frame_sampler.VideoFrames and returns the increasing "
        "numbers of the frames to take, at most --frames-upbound",
    )
    add(
        "--add-time-instruction",
        action="store_true",
        help="say in the question when the frames of its video are, as LLaVA-Video does",
    )


def visual_settings(given: Any, *, verify: bool) -> VisualSettings:
    """What those flags and --image-folder mean, fields of `given` under their names.

    Raises:
        ValueError: a value out of range.
    """
    return VisualSettings(
        image_folder=None if given.image_folder is None else Path(given.image_folder),
        video_folder=given.video_folder,
        sampling=FrameSampling(
            video_fps=given.video_fps,
            frames_upbound=given.frames_upbound,
            force_sample=given.force_sample,
            all_frames=given.all_frames,
            frame_sampler=given.frame_sampler,
        ),
        add_time_instruction=given.add_time_instruction,
        verify=verify,
    )
