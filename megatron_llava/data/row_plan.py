"""The row plan of a pack: of which rows of the virtual table each packed row is the sum, and where
each row of the table is used. What ``visual_pack`` reads in the forward and in the backward.

The virtual table is [features F | special rows S | text N]. Written with numpy here, from the
Python token layout; row_plan_library.py does the same in C++, bit for bit and much faster.

Sizes in shapes: R packed rows, M = F + S + N table rows, n visuals of the pack, U uses of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import VideoSettings
from megatron_llava.vision.anyres import Size
from megatron_llava.vision.merge_shape import Merge, merge_image, merge_video
from megatron_llava.vision.token_layout import MAX_TAPS, image_layout, video_layout

Visuals = NDArray[np.int64]
"""[n, 5], what stands at each placeholder of a pack, in order. An image: W, H, IMAGE, whether it
shares its sample with others, whether it is not the first of it. A video: frames, 0, VIDEO, 0, 0.
"""

IMAGE, VIDEO = 0, 1

Answer = TypeVar("Answer")


class RowUses(NamedTuple):
    """The uses of each table row (compressed sparse rows), ordered by packed row, then by tap."""

    offsets: NDArray[np.int64]
    """[M + 1]; the uses of table row t are offsets[t] to offsets[t + 1]."""

    rows: NDArray[np.int64]
    """[U], packed rows."""

    weights: NDArray[np.float32]
    """[U]"""


class RowPlan(NamedTuple):
    """Which table rows each packed row is the sum of, both ways."""

    taps: NDArray[np.int64]
    """[R, 4]"""

    weights: NDArray[np.float32]
    """[R, 4]; 0 for a tap that is not used."""

    uses: RowUses


class NoLayoutError(ValueError):
    """A visual that the settings leave no layout of."""

    def __init__(self, visual: int, message: str) -> None:
        super().__init__(message)
        self.visual = visual
        """Its place in the array of visuals."""


def visuals_of_samples(samples: Sequence[Sequence[Size]], image: ImageSettings) -> Visuals:
    """[n, 5] for the images and videos of each sample: (W, H) of an image, (frames, 0) of a video.

    Videos do not count among the images that share a sample, as in transformers.
    """
    rows = []
    for sizes in samples:
        single_view = image.single_view(sum(not is_video(size) for size in sizes))
        for number, size in enumerate(sizes):
            if is_video(size):
                rows.append((size[0], 0, VIDEO, 0, 0))
            else:
                rows.append((*size, IMAGE, single_view, number > 0))
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def is_video(size: Size) -> bool:
    """Whether a stored size is (frames, 0) of a video."""
    return size[1] == 0


def visuals_of_videos(num_frames: Sequence[int]) -> Visuals:
    """[n, 5] for videos of so many frames."""
    rows = [(frames, 0, VIDEO, 0, 0) for frames in num_frames]
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def merge_of(visual: NDArray[np.int64], image: ImageSettings, video: VideoSettings | None) -> Merge:
    """The shape of one visual's sequence; errors as for the layouts."""
    return _answer(merge_image, merge_video, visual, image, video)


def _answer(
    of_image: Callable[..., Answer],
    of_video: Callable[..., Answer],
    visual: NDArray[np.int64],
    image: ImageSettings,
    video: VideoSettings | None,
) -> Answer:
    """What one of two functions says of a visual, by its kind."""
    width, height, kind, single_view, after_image = visual.tolist()
    if kind == IMAGE:
        flags = {"single_view": bool(single_view), "after_image": bool(after_image)}
        return of_image((width, height), image, **flags)
    assert video is not None
    return of_video(width, video)


class RowPlanner(Protocol):
    """What builds row plans; the settings of frames are needed where a visual is a video."""

    def count(
        self, visuals: Visuals, image: ImageSettings, video: VideoSettings | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens [n] and views [n] of visuals.

        Raises:
            NoLayoutError: one line, for the first visual without a layout.
        """

    def plan(
        self,
        visuals: Visuals,
        image: ImageSettings,
        *,
        visual_rows: NDArray[np.int64],
        text_rows: NDArray[np.int64],
        num_features: int,
        total_rows: int,
        video: VideoSettings | None = None,
    ) -> RowPlan:
        """The plan of a pack whose visuals have been counted.

        Args:
            visual_rows: [n], the first packed row of each visual, ascending.
            text_rows: [N], the packed row of each text token, ascending.
            num_features: F, features of all views before the special rows.
            total_rows: R; rows of neither are padding and have no tap.
        """

    def transpose(
        self, taps: NDArray[np.int64], weights: NDArray[np.float32], table_rows: int
    ) -> RowUses:
        """The uses of each of M table rows by taps and weights [R, 4]."""


def num_special_rows(image: ImageSettings, video: VideoSettings | None) -> int:
    """S, special rows of the virtual table."""
    for_video = 4 if video is not None and video.image_start_end else 1
    return max(image.num_special_rows, for_video)


class NumpyPlanner:
    """Row plans from the Python token layout, where the library is not installed."""

    def count(
        self, visuals: Visuals, image: ImageSettings, video: VideoSettings | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See RowPlanner."""
        counts = np.zeros((len(visuals), 2), dtype=np.int64)
        for number, visual in enumerate(visuals):
            try:
                merge = merge_of(visual, image, video)
            except ValueError as error:
                raise NoLayoutError(number, str(error)) from error
            counts[number] = merge.num_tokens, merge.num_views
        return counts[:, 0], counts[:, 1]

    def plan(
        self,
        visuals: Visuals,
        image: ImageSettings,
        *,
        visual_rows: NDArray[np.int64],
        text_rows: NDArray[np.int64],
        num_features: int,
        total_rows: int,
        video: VideoSettings | None = None,
    ) -> RowPlan:
        """See RowPlanner."""
        taps = np.zeros((total_rows, MAX_TAPS), dtype=np.int64)
        weights = np.zeros((total_rows, MAX_TAPS), dtype=np.float32)
        first_text = num_features + num_special_rows(image, video)
        taps[text_rows, 0] = first_text + np.arange(len(text_rows))
        weights[text_rows, 0] = 1.0
        first_feature = 0
        for row, visual in zip(visual_rows.tolist(), visuals, strict=True):
            layout = _answer(image_layout, video_layout, visual, image, video)
            rows = slice(row, row + len(layout.taps))
            features = np.where(layout.weights == 0.0, 0, layout.taps + first_feature)
            taps[rows] = np.where(layout.taps < 0, num_features - 1 - layout.taps, features)
            weights[rows] = layout.weights
            first_feature += layout.num_views * image.tokens_per_view
        table_rows = first_text + len(text_rows)
        return RowPlan(taps, weights, self.transpose(taps, weights, table_rows))

    def transpose(
        self, taps: NDArray[np.int64], weights: NDArray[np.float32], table_rows: int
    ) -> RowUses:
        """See RowPlanner."""
        used = np.flatnonzero(weights)
        table = taps.reshape(-1)[used]
        order = np.argsort(table, kind="stable")
        offsets = np.zeros(table_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(table, minlength=table_rows), out=offsets[1:])
        return RowUses(offsets, used[order] // MAX_TAPS, weights.reshape(-1)[used[order]])
