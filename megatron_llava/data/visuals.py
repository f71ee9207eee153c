"""The images and videos of a record, in the order of their placeholders, ready to be stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_llava.data.image_source import ImageSource, inside, read_image
from megatron_llava.data.records import Record
from megatron_llava.data.stored_video import StoredVideo, pack_frames, pack_video, unpack_frames
from megatron_llava.text.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from megatron_llava.text.templates import Turn
from megatron_llava.vision.frame_sampler import VideoFrames, chosen_frames
from megatron_llava.vision.frames import (
    FOLDER_FPS,
    FOLDER_FRAMES,
    FrameSampling,
    decode_frames,
    sampled_frames,
    spread_frames,
    video_length,
)
from megatron_llava.vision.tiles import image_size, open_image

_EITHER = re.compile(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}")


@dataclass(frozen=True, kw_only=True)
class VisualSettings:
    """Where images and videos are, and what is taken of them.

    Attributes:
        image_folder, video_folder: what paths are relative to; videos lie with the images where
            they have no folder of their own.
        sampling: which frames are taken.
        add_time_instruction: say in the question when the frames of its video are.
        verify: decode everything in full once, so that a cut file is found before training.
    """

    image_folder: Path | None = None
    video_folder: Path | None = None
    sampling: FrameSampling = FrameSampling()
    add_time_instruction: bool = False
    verify: bool = True


@dataclass(frozen=True, kw_only=True)
class ReadRecord:
    """A record's turns with one IMAGE_PLACEHOLDER for each item, and the items to be stored.

    sizes: (width, height) in pixels, (frames, 0) of a video.
    """

    turns: tuple[Turn, ...]
    items: list[bytes]
    sizes: list[tuple[int, int]]


def read_visuals(record: Record, settings: VisualSettings) -> ReadRecord:
    """Read the files of a record.

    A video's placeholder is `<video>`, or, where the record has no image, also `<image>`, as in
    LLaVA's files.

    Raises:
        ValueError: one line that starts with the record's source.
    """
    if not record.videos:
        images = [_image(image, record.source, settings) for image in record.images]
        return _read(record.turns, images)
    if settings.add_time_instruction and (len(record.videos) > 1 or record.images):
        raise ValueError(
            f"{record.source}: --add-time-instruction is for one video, this record has "
            f"{len(record.videos)} videos and {len(record.images)} images"
        )
    order = _order(record)
    videos = [_video(video, record.source, settings) for video in record.videos]
    of_kind = {
        IMAGE_PLACEHOLDER: iter([_image(i, record.source, settings) for i in record.images]),
        VIDEO_PLACEHOLDER: iter([(video.data, (video.num_frames, 0)) for video in videos]),
    }
    turns = tuple(
        turn._replace(text=turn.text.replace(VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER))
        if turn.role == "human"
        else turn
        for turn in record.turns
    )
    if settings.add_time_instruction:
        uniformly = settings.sampling.frame_sampler is None
        turns = _timed(turns, videos[0], "uniformly sampled" if uniformly else "sampled")
    return _read(turns, [next(of_kind[kind]) for kind in order])


def _read(turns: Sequence[Turn], items: Sequence[tuple[bytes, tuple[int, int]]]) -> ReadRecord:
    return ReadRecord(
        turns=tuple(turns), items=[data for data, _ in items], sizes=[size for _, size in items]
    )


def _order(record: Record) -> list[str]:
    """The kind of each placeholder of a record with videos."""
    texts = [turn.text for turn in record.turns if turn.role == "human"]
    found = [kind for text in texts for kind in _EITHER.findall(text)]
    if not record.images:
        found = [VIDEO_PLACEHOLDER] * len(found)
    for kind, given in ((IMAGE_PLACEHOLDER, record.images), (VIDEO_PLACEHOLDER, record.videos)):
        if found.count(kind) != len(given):
            raise ValueError(
                f"{record.source}: {found.count(kind)} {kind} placeholders in the conversation, "
                f"but {len(given)} {kind[1:-1]}s; write one placeholder for each"
            )
    return found


def _image(
    image: ImageSource, source: str, settings: VisualSettings
) -> tuple[bytes, tuple[int, int]]:
    data, called = read_image(image, settings.image_folder, source)
    return data, image_size(data, f"{source}: image {called}", verify=settings.verify)


def _video(video: ImageSource, source: str, settings: VisualSettings) -> StoredVideo:
    folder = settings.video_folder or settings.image_folder
    if isinstance(video, str):
        path = inside(video, folder, source, "video")
        if path.is_dir():
            return _frame_folder(path, source, settings)
    data, called = read_image(video, folder, source, "video")
    named = f"{source}: video {called}"
    count, fps = video_length(data, named)
    sampling = settings.sampling
    if sampling.frame_sampler is None:
        numbers = sampled_frames(count, fps, sampling)
    else:
        decode = partial(decode_frames, data, source=named)
        numbers = _chosen(sampling, named, count, fps, decode)
    return _stored(pack_video(data, numbers.tolist()), numbers, count, fps, named, settings)


def _frame_folder(path: Path, source: str, settings: VisualSettings) -> StoredVideo:
    """LLaVA-NeXT's frame folders: 10 of the files, in the order of their names, at 2 per second;
    with ``force_sample`` so many as ``frames_upbound``, with ``all_frames`` all of them, with
    ``frame_sampler`` those that it chooses."""
    named = f"{source}: video {path}"
    files = sorted(file for file in path.iterdir() if file.is_file())
    if not files:
        raise ValueError(f"{named}: holds no frame")
    if settings.sampling.frame_sampler is not None:
        decode = partial(_open_frames, files, named)
        numbers = _chosen(settings.sampling, named, len(files), FOLDER_FPS, decode)
    elif settings.sampling.all_frames:
        numbers = np.arange(len(files))
    else:
        sampling = settings.sampling
        count = sampling.frames_upbound if sampling.force_sample else FOLDER_FRAMES
        numbers = spread_frames(len(files), count)
    frames = [files[number].read_bytes() for number in numbers]
    return _stored(pack_frames(frames), numbers, len(files), FOLDER_FPS, named, settings)


def _open_frames(files: Sequence[Path], named: str, numbers: Sequence[int]) -> list[Image.Image]:
    return [open_image(files[n].read_bytes(), f"{named}: frame {n}") for n in numbers]


def _chosen(
    sampling: FrameSampling,
    named: str,
    count: int,
    fps: float,
    decode: Callable[[Sequence[int]], list[Image.Image]],
) -> np.ndarray:
    """What the user's function takes of a video."""
    assert sampling.frame_sampler is not None
    video = VideoFrames(
        source=named,
        num_frames=count,
        fps=fps,
        frames_upbound=sampling.frames_upbound,
        decode=decode,
    )
    return chosen_frames(sampling.frame_sampler, video)


def _stored(
    item: bytes,
    numbers: np.ndarray,
    count: int,
    fps: float,
    named: str,
    settings: VisualSettings,
) -> StoredVideo:
    if settings.verify:
        unpack_frames(item, named)
    times = tuple((numbers / fps).tolist())
    return StoredVideo(item, len(numbers), count / fps, times)


def _timed(turns: Sequence[Turn], video: StoredVideo, how: str) -> tuple[Turn, ...]:
    """The video first, then when its frames are, then the question.

    The wording is what LLaVA-Video was trained with, without a space before "Please"; `how` is
    "uniformly sampled" there.
    """
    times = ",".join(f"{time:.2f}s" for time in video.times)
    instruction = (
        f"The video lasts for {video.seconds:.2f} seconds, and {video.num_frames} frames are "
        f"{how} from it. These frames are located at {times}.Please answer the "
        "following questions related to this video."
    )
    first = next(n for n, turn in enumerate(turns) if IMAGE_PLACEHOLDER in turn.text)
    question = turns[first].text.replace(IMAGE_PLACEHOLDER, "").strip()
    text = f"{IMAGE_PLACEHOLDER}\n{instruction}\n{question}"
    return (*turns[:first], turns[first]._replace(text=text), *turns[first + 1 :])
