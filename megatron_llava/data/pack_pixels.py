"""The pixels of a pack: the views that the tower sees of its images and videos.

Sizes in shapes: V views, S pixels per side of a view.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.row_plan import is_video
from megatron_llava.data.sample import Sample
from megatron_llava.data.stored_video import unpack_frames
from megatron_llava.vision.frames import frame_views
from megatron_llava.vision.tiles import enough_pixels, image_views, open_image


def tiles_of(
    samples: Sequence[Sample],
    views: NDArray[np.int64],
    settings: ImageSettings,
    share: range,
    exact_pixels: bool,
) -> NDArray[np.uint8]:
    """[max(len(share), 1), 3, S, S]: the tower always has something to do, on every rank."""
    side = settings.tile_size
    tiles = np.zeros((max(len(share), 1), 3, side, side), dtype=np.uint8)
    first, num_views = 0, iter(views.tolist())
    for sample in samples:
        assert sample.images is not None and len(sample.images) == len(sample.image_sizes)
        for number in range(len(sample.images)):
            end = first + next(num_views)
            wanted = range(max(first, share.start), min(end, share.stop))
            if wanted:
                decoded = views_of(sample, number, settings, exact_pixels=exact_pixels)
                assert len(decoded) == end - first
                place = wanted.start - share.start
                tiles[place : place + len(wanted)] = decoded[wanted.start - first :][: len(wanted)]
            first = end
    return tiles


def views_of(
    sample: Sample, number: int, settings: ImageSettings, *, exact_pixels: bool = True
) -> NDArray[np.uint8]:
    """uint8 [V, 3, S, S]: what the tower sees of one image or video of a sample.

    Raises:
        ValueError: it cannot be decoded, or has another size than was stored; names the sample.
    """
    assert sample.images is not None
    data = sample.images[number]
    if is_video(sample.image_sizes[number]):
        source = f"{sample.source}: video {number}"
        frames = unpack_frames(data, source)
        try:
            return frame_views(frames, settings)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    source = f"{sample.source}: image {number}"
    size = sample.image_sizes[number]
    single_view = settings.single_view(sum(not is_video(size) for size in sample.image_sizes))
    enough = None if exact_pixels else enough_pixels(size, settings, single_view=single_view)
    image = open_image(data, source, at_least=enough)
    if image.size not in _sizes_of_decoding(size, exact_pixels):
        raise ValueError(f"{source} decodes to {image.size} pixels, stored as {size}")
    try:
        return image_views(image, settings, single_view=single_view, full_size=size)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _sizes_of_decoding(size: tuple[int, int], exact_pixels: bool) -> set[tuple[int, int]]:
    """What an image of this size may decode to."""
    parts = (1,) if exact_pixels else (1, 2, 4, 8)
    return {(-(-size[0] // part), -(-size[1] // part)) for part in parts}
