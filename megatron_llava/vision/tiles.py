"""Pixels of an image: decoding, and the views that the vision tower sees."""

import io
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision.anyres import Size, select_canvas
from megatron_llava.vision.token_layout import number_of_views

# Resizing or padding a thin strip can ask for far more pixels than the strip has.
MAX_INTERMEDIATE_PIXELS = 1 << 29

_BICUBIC = Image.Resampling.BICUBIC


def open_image(data: bytes, source: str, *, at_least: Size | None = None) -> Image.Image:
    """Decode an image to RGB.

    Only the first frame is read; orientation tags, colour profiles and transparency are ignored, as
    LLaVA does.

    Args:
        data: the encoded file.
        source: where the bytes come from, for the error.
        at_least: (W, H) that are enough: a JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8
            of its size that has them.

    Raises:
        ValueError: the bytes are no image, are cut short, unfold to more than Pillow's limit of
            178,956,970 pixels, or are 16-bit or floating-point grey.
    """
    try:
        with _opened(data) as image:
            if at_least is not None:
                image.draft(None, at_least)
            return _rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, IndexError...
        raise _unreadable(data, source, error) from None


def image_size(data: bytes, source: str, *, verify: bool = False) -> Size:
    """(W, H) of an encoded image, in pixels, from its header alone.

    Args:
        data: the encoded file.
        source: where the bytes come from, for the error.
        verify: also decode every pixel, so that a cut file is found here and not while training.

    Raises:
        ValueError: the header (with verify: any part) cannot be read, or a pixel decodes to another
            size than the header says.
    """
    try:
        with _opened(data) as image:
            size = image.size
            decoded = (_rgb(image) if verify else image).size
    except MemoryError:
        raise
    except Exception as error:  # as in open_image
        raise _unreadable(data, source, error) from None
    if decoded != size:
        raise ValueError(
            f"{source}: the header says {size[0]}x{size[1]} pixels, the image has "
            f"{decoded[0]}x{decoded[1]}; save it again in another format"
        )
    return size


def image_views(
    image: Image.Image,
    settings: ImageSettings,
    *,
    single_view: bool = False,
    full_size: Size | None = None,
) -> NDArray[np.uint8]:
    """Cut an image into the views that the vision tower sees.

    A grid gives the base view first (the whole image squashed to S x S, unless 'nobase'), then the
    tiles of the letterboxed canvas in row-major order. All resizing is Pillow's bicubic, so the
    pixels equal those of LLaVA and of transformers' Pillow processors.

    Args:
        image: RGB image.
        settings: image settings.
        single_view: the image shares its sample with others: one padded view in every mode.
        full_size: (W, H) of an image that was decoded at less.

    Returns:
        uint8 [V, 3, S, S], V = number_of_views(full_size, settings, single_view=single_view).

    Raises:
        ValueError: a strip so thin that padding or cropping it would need too much memory.
    """
    assert image.mode == "RGB", image.mode
    side = settings.tile_size
    size = image.size if full_size is None else full_size
    if single_view or settings.image_aspect_ratio == "pad":
        return _channels_first([_padded_view(image, settings, size)])
    if settings.image_aspect_ratio == "square":
        return _channels_first([square_view(image, side, settings.resize_mode, size)])

    views = np.empty((number_of_views(size, settings), 3, side, side), dtype=np.uint8)
    first_tile = int(settings.has_base_view)
    if first_tile:
        views[0] = np.asarray(_resized(image, size, (side, side))).transpose(2, 0, 1)
    canvas = _letterbox(image, size, select_canvas(size, settings))
    rows, columns = canvas.shape[0] // side, canvas.shape[1] // side
    tiles = views[first_tile:].reshape(rows, columns, 3, side, side)
    tiles[:] = canvas.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    return views


def normalize_tiles(
    tiles_uint8: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """(pixel / 255 - mean) / std, computed in float32 and rounded once to dtype.

    In float32 it equals transformers' numpy path bit for bit: v * (1/255) in float64 rounded to
    float32 is the same number as v / 255 in float32 for all 256 values of v.

    Args:
        tiles_uint8: uint8 [V, 3, S, S], on any device.
        mean: three channel means in [0, 1].
        std: three channel standard deviations.
        dtype: type of the result.

    Returns:
        dtype [V, 3, S, S] on the same device.
    """
    assert tiles_uint8.dtype == torch.uint8 and tiles_uint8.shape[1] == 3, tiles_uint8.shape
    device = tiles_uint8.device
    # Divisors are tensors on the device: CUDA would multiply by the reciprocal of a Python scalar.
    scale = torch.tensor(255.0, dtype=torch.float32, device=device)
    mean_row = torch.tensor(list(mean), dtype=torch.float32, device=device).view(1, 3, 1, 1)
    std_row = torch.tensor(list(std), dtype=torch.float32, device=device).view(1, 3, 1, 1)
    pixels = tiles_uint8.to(torch.float32).div_(scale).sub_(mean_row).div_(std_row)
    return pixels.to(dtype)


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # From half of the limit on Pillow warns.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data))
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"grey values of mode {image.mode} would nearly all become white in RGB; save it with "
            "8 bits per channel"
        )
    return image


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _unreadable(data: bytes, source: str, error: Exception) -> ValueError:
    # Some decoders' messages span lines or print the address of the buffer.
    kind = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    reason = " ".join(kind.split()) or type(error).__name__
    return ValueError(f"{source}: cannot read an image from its {len(data)} bytes: {reason}")


def _channels_first(views: list[Image.Image]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack([np.asarray(v) for v in views]).transpose(0, 3, 1, 2))


def enough_pixels(size: Size, settings: ImageSettings, *, single_view: bool = False) -> Size:
    """(W, H) of an image of which the views can be cut as well as of the whole: twice as many in
    each direction as the largest of them shows, which Pillow's `reducing_gap` calls enough.

    Args:
        size: of the whole image.
        settings, single_view: see `image_views`.
    """
    side = settings.tile_size
    grid = not single_view and settings.image_aspect_ratio not in ("pad", "square")
    if grid:
        width, height = _touching(size, select_canvas(size, settings))
        if settings.has_base_view:
            width, height = max(width, side), max(height, side)
        return 2 * width, 2 * height
    # The shorter side may be what fills the view, where it is cropped.
    scale = side / min(size)
    return math.ceil(2 * size[0] * scale), math.ceil(2 * size[1] * scale)


def _touching(size: Size, canvas_size: Size) -> Size:
    """(W, H) of an image scaled until it touches a canvas (LLaVA-NeXT, resize_and_pad_image)."""
    (width, height), (image_width, image_height) = canvas_size, size
    scale_width, scale_height = width / image_width, height / image_height
    if scale_width < scale_height:
        return width, min(math.ceil(image_height * scale_width), height)
    return min(math.ceil(image_width * scale_height), width), height


def _letterbox(image: Image.Image, full_size: Size, canvas_size: Size) -> NDArray[np.uint8]:
    """uint8 [h, w, 3]: the image scaled to touch the canvas, centred on black.

    An odd remainder goes to the right or the bottom (LLaVA-NeXT, resize_and_pad_image).
    """
    width, height = canvas_size
    new_width, new_height = _touching(full_size, canvas_size)
    resized = np.asarray(_resized(image, full_size, (new_width, new_height)))
    if resized.shape == (height, width, 3):
        return resized
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas


def _part(image: Image.Image, full_size: Size) -> int:
    """1, or 2, 4, 8 where the image was decoded at that part of its size."""
    return max(round(max(full_size) / max(image.size)), 1)


def padded_size(size: Size, aspect_ratio: float, tolerance: float) -> Size:
    """(W, H) of an image padded to W / H = aspect_ratio: the side that is too short is lengthened,
    rounding down. Unchanged where its ratio differs by less than the tolerance."""
    width, height = size
    if abs(width / height - aspect_ratio) < tolerance:
        return size
    if width / height > aspect_ratio:
        return width, max(int(width / aspect_ratio), height)
    return max(int(height * aspect_ratio), width), height


def _padded_view(image: Image.Image, settings: ImageSettings, full_size: Size) -> Image.Image:
    """S x S of the image centred on int(255 * mean), at its own scale, as `padded_size` says; an
    odd remainder goes to the right or the bottom."""
    padded = padded_size(full_size, settings.pad_aspect_ratio, settings.pad_tolerance)
    part = _part(image, full_size)
    _check_pixels(full_size, padded, "padding")
    before = [(new - old) // 2 for new, old in zip(padded, full_size, strict=True)]
    # Pixels of an image decoded at less are pasted whole, and the canvas begins within one.
    left, top = (math.ceil(length / part) for length in before)
    x, y = left - before[0] / part, top - before[1] / part
    red, green, blue = (int(channel * 255) for channel in settings.image_mean)
    width, height = (math.ceil(length / part) + (part > 1) for length in padded)
    canvas = Image.new("RGB", (width, height), (red, green, blue))
    canvas.paste(image, (left, top))
    box = (x, y, x + padded[0] / part, y + padded[1] / part)
    return canvas.resize((settings.tile_size, settings.tile_size), _BICUBIC, box)


def square_view(
    image: Image.Image, side: int, resize_mode: str, full_size: Size | None = None
) -> Image.Image:
    """One S x S view: squashed, or scaled by the shortest edge and cropped in the centre.

    full_size: see `image_views`.
    """
    full_size = full_size or image.size
    if resize_mode == "squash":
        return _resized(image, full_size, (side, side))
    width, height = full_size
    short, long = min(width, height), max(width, height)
    new_long = int(side * long / short)
    new_size = (side, new_long) if width <= height else (new_long, side)
    _check_pixels(full_size, new_size, "scaling the short side")
    left, top = (new_size[0] - side) // 2, (new_size[1] - side) // 2
    resized = _resized(image, full_size, new_size)
    return resized.crop((left, top, left + side, top + side))


def _resized(image: Image.Image, full_size: Size, new_size: Size) -> Image.Image:
    """The image in another size. Of one that was decoded at 1/2, 1/4 or 1/8 the last column and row
    may stand for a part of a pixel only."""
    part = _part(image, full_size)
    return image.resize(new_size, _BICUBIC, (0, 0, full_size[0] / part, full_size[1] / part))


def _check_pixels(size: Size, new_size: Size, action: str) -> None:
    if new_size[0] * new_size[1] > MAX_INTERMEDIATE_PIXELS:
        raise ValueError(
            f"image of {size[0]}x{size[1]} pixels: {action} gives {new_size[0]}x{new_size[1]}, "
            f"above the limit of {MAX_INTERMEDIATE_PIXELS} pixels; remove the image or crop it"
        )
