"""Decoding, and what the views hold."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision import tiles
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.tiles import (
    enough_pixels,
    image_size,
    image_views,
    normalize_tiles,
    open_image,
    padded_size,
)
from megatron_llava.vision.token_layout import number_of_views

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TINY = ImageSettings(
    tile_size=56,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(3x3)", 56),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="llava",
    resize_mode="squash",
    image_mean=MEAN,
    image_std=STD,
)
PAD = replace(TINY, image_aspect_ratio="pad", grid_pinpoints=())
SQUARE = replace(PAD, image_aspect_ratio="square")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_opens_as_rgb(mode: str) -> None:
    data = encoded(noise(7, 5).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    image = open_image(data, "x.png")
    assert image.mode == "RGB" and image.size == (7, 5)
    assert image_size(data, "x.png") == image_size(data, "x.png", verify=True) == (7, 5)


@pytest.mark.parametrize(
    "how",
    [
        TINY,
        replace(TINY, image_aspect_ratio="nobase"),
        PAD,
        replace(PAD, pad_tolerance=0.5),
        replace(PAD, pad_aspect_ratio=1.5),
        SQUARE,
        replace(SQUARE, resize_mode="shortest_edge_crop"),
    ],
)
@pytest.mark.parametrize("single_view", [False, True])
@pytest.mark.parametrize("size", [(1023, 769), (640, 1999), (150, 100)])
def test_reduced_decoding(how: ImageSettings, single_view: bool, size: tuple[int, int]) -> None:
    """A photograph decoded at less than its size gives about the same views."""
    photograph = Image.fromarray(data.astronaut()).resize(size, Image.Resampling.BICUBIC)
    content = encoded(photograph, "JPEG")
    enough = enough_pixels(size, how, single_view=single_view)
    whole, reduced = open_image(content, "x"), open_image(content, "x", at_least=enough)
    fitting = min(size[0] // enough[0], size[1] // enough[1])
    part = max((part for part in (2, 4, 8) if part <= fitting), default=1)
    assert reduced.size == (-(-size[0] // part), -(-size[1] // part))
    expected = image_views(whole, how, single_view=single_view)
    found = image_views(reduced, how, single_view=single_view, full_size=size)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert (difference.max() > 0) == (part > 1)
    assert difference.mean() < 2
    # What is no JPEG is decoded in full.
    assert open_image(encoded(photograph, "PNG"), "x", at_least=(1, 1)).size == size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_cut_files_are_named_in_one_line(kind: str) -> None:
    whole = encoded(noise(60, 50), kind)
    cut = whole[: len(whole) // 2]
    for read in (
        lambda: open_image(cut, "a/b.img of data.json:7"),
        lambda: image_size(cut, "a/b.img of data.json:7", verify=True),
    ):
        with pytest.raises(ValueError, match=r"^a/b\.img of data\.json:7: cannot read") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_the_header_alone_gives_the_size(kind: str) -> None:
    whole = encoded(noise(60, 50), kind)
    assert image_size(whole[: len(whole) // 2], "a") == (60, 50)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff", b"\x89PNG\r\n"])
def test_bytes_that_are_no_image(data: bytes) -> None:
    for read in (open_image, image_size):
        with pytest.raises(
            ValueError, match=f"^photo.jpg: cannot read .* {len(data)} bytes: ."
        ) as e:
            read(data, "photo.jpg")
        assert "BytesIO" not in str(e.value)


@given(st.binary(max_size=40), st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_damaged_files_raise_nothing_but_value_errors(junk: bytes, position: int) -> None:
    data = bytearray(encoded(noise(20, 20), "PNG"))
    position = min(position, len(data))
    data[position : position + len(junk)] = junk
    for read in (lambda: open_image(bytes(data), "s"), lambda: image_size(bytes(data), "s")):
        try:
            read()
        except ValueError as error:
            assert str(error).startswith("s: ") and "\n" not in str(error)


def test_an_image_that_unfolds_to_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="^bomb.png: cannot read"):
        open_image(encoded(noise(50, 50), "PNG"), "bomb.png")


@pytest.mark.proves("A1")
def test_base_view_comes_first_and_is_squashed() -> None:
    image = noise(168, 56)  # fills a 3x1 canvas exactly, so its tiles are its own pixels
    views = image_views(image, TINY)
    assert views.shape == (4, 3, 56, 56) and views.dtype == np.uint8
    pixels = np.asarray(image).transpose(2, 0, 1)
    for column in range(3):
        assert (views[1 + column] == pixels[:, :, 56 * column : 56 * (column + 1)]).all()
    squashed = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (views[0] == squashed).all()
    assert (image_views(image, replace(TINY, image_aspect_ratio="nobase")) == views[1:]).all()


@pytest.mark.proves("A1")
def test_tiles_are_row_major_on_a_black_centred_canvas() -> None:
    two_by_two = replace(TINY, grid_pinpoints=((112, 112),))
    white = Image.new("RGB", (112, 55), (255, 255, 255))
    views = image_views(white, two_by_two)
    assert (views[0] == 255).all()
    canvas = np.concatenate(
        [np.concatenate(list(views[1:3]), axis=2), np.concatenate(list(views[3:]), axis=2)], axis=1
    )
    assert canvas.shape == (3, 112, 112)
    # 57 spare rows: 28 above and 29 below.
    assert (canvas[:, :28] == 0).all() and (canvas[:, 28:83] == 255).all()
    assert (canvas[:, 83:] == 0).all()


@pytest.mark.parametrize("single_view", [False, True])
def test_pad_mode_fills_with_the_mean_colour(single_view: bool) -> None:
    white = Image.new("RGB", (56, 21), (255, 255, 255))
    views = image_views(white, TINY if single_view else PAD, single_view=single_view)
    assert views.shape == (1, 3, 56, 56)
    expected = np.empty((3, 56, 56), dtype=np.uint8)
    expected[:] = np.array([122, 116, 104], dtype=np.uint8)[:, None, None]
    expected[:, 17:38] = 255  # 35 spare rows: 17 above and 18 below
    assert (views[0] == expected).all()


@pytest.mark.proves("A16")
@pytest.mark.parametrize(
    ("size", "ratio", "tolerance", "padded"),
    [
        ((640, 480), 1.0, 0.1, (640, 640)),
        ((480, 640), 1.0, 0.1, (640, 640)),
        ((109, 100), 1.0, 0.1, (109, 100)),  # close enough
        ((109, 100), 1.0, 0.0, (109, 109)),
        ((91, 100), 1.0, 0.1, (91, 100)),
        ((111, 100), 1.0, 0.1, (111, 111)),
        ((100, 100), 1.5, 0.1, (150, 100)),
        ((500, 100), 1.5, 0.1, (500, 333)),
    ],
)
def test_the_size_after_padding(size, ratio, tolerance, padded) -> None:
    assert padded_size(size, ratio, tolerance) == padded


@pytest.mark.proves("A16")
@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.floats(0.2, 5),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_padding_lengthens_one_side_to_the_ratio(size, ratio: float, tolerance: float) -> None:
    width, height = size
    new_width, new_height = padded_size(size, ratio, tolerance)
    assert (new_width == width or new_height == height) and new_width >= width
    assert new_height >= height
    if abs(width / height - ratio) < tolerance:
        assert (new_width, new_height) == size
    elif new_height > height or width / height > ratio:
        assert new_height <= width / ratio + 1e-6 and new_height > width / ratio - 1
    else:
        assert new_width <= height * ratio + 1e-6 and new_width > height * ratio - 1


@pytest.mark.proves("A16")
@pytest.mark.parametrize("size", [(60, 56), (40, 56), (101, 56)])
@pytest.mark.parametrize("ratio", [1.0, 2.0])
@pytest.mark.parametrize("single_view", [False, True])
def test_a_padded_view_is_the_image_in_the_middle_of_its_mean(size, ratio, single_view) -> None:
    image = noise(*size)
    how = TINY if single_view else PAD
    views = image_views(
        image, replace(how, pad_tolerance=0.1, pad_aspect_ratio=ratio), single_view=single_view
    )
    width, height = padded_size(size, ratio, 0.1)
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = [122, 116, 104]
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(image)
    expected = Image.fromarray(canvas).resize((56, 56), Image.Resampling.BICUBIC)
    assert (views == np.asarray(expected).transpose(2, 0, 1)[None]).all()


def test_square_mode_squashes_or_crops() -> None:
    image = noise(100, 56)
    pixels = np.asarray(image).transpose(2, 0, 1)
    cropped = image_views(image, replace(SQUARE, resize_mode="shortest_edge_crop"))
    assert (cropped == pixels[None, :, :, 22:78]).all()
    squashed = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (image_views(image, SQUARE)[0] == squashed).all()


def test_strips_that_would_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MAX_INTERMEDIATE_PIXELS", 10_000)
    strip = noise(101, 3)
    with pytest.raises(ValueError, match="image of 101x3 pixels: padding gives 101x101"):
        image_views(strip, PAD)
    with pytest.raises(ValueError, match="image of 101x3 pixels: scaling the short side gives"):
        image_views(strip, replace(SQUARE, resize_mode="shortest_edge_crop"))
    assert image_views(strip, TINY).shape[0] == number_of_views((101, 3), TINY)


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_views_are_as_many_as_planned(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    for aspect_ratio in ("anyres", "anyres_max_4", "nobase"):
        configuration = replace(TINY, image_aspect_ratio=aspect_ratio)
        views = image_views(image, configuration)
        assert views.shape == (number_of_views(image.size, configuration), 3, 56, 56)
        assert views.flags.c_contiguous


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,) * 3, (0.5,) * 3)])
def test_every_pixel_value_normalises_to_the_numpy_number(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    reference = (values.numpy().astype(np.float64) * (1 / 255)).astype(np.float32)
    channels = (1, 3, 1, 1)
    reference -= np.array(mean, dtype=np.float32).reshape(channels)
    reference /= np.array(std, dtype=np.float32).reshape(channels)
    result = normalize_tiles(values, mean, std, torch.float32)
    assert torch.equal(result, torch.from_numpy(reference))
    assert torch.equal(normalize_tiles(values, mean, std, torch.bfloat16), result.bfloat16())
    assert (values[0, 0] == torch.arange(256).view(16, 16)).all()  # the input is not touched


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_normalising_on_the_gpu_gives_the_same_bits() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    on_cpu = normalize_tiles(values, MEAN, STD, torch.float32)
    assert torch.equal(normalize_tiles(values.cuda(), MEAN, STD, torch.float32).cpu(), on_cpu)
