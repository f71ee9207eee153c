"""Views, normalised pixels, token counts and merged features equal those of transformers."""

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_settings import NEXT, ONEVISION

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import VideoSettings
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.merge_shape import NEWLINE
from megatron_llava.vision.tiles import image_views, normalize_tiles
from megatron_llava.vision.token_layout import image_layout, number_of_tokens, video_layout

Size = tuple[int, int]


def hf(model: str, module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{model}.{module}_{model}"), name)


# A smaller tile keeps the pixel comparisons short; the rules do not depend on it.
CLIP_SMALL = replace(
    NEXT, tile_size=84, grid_pinpoints=tuple((w // 4, h // 4) for w, h in NEXT.grid_pinpoints)
)
SIGLIP_SMALL = replace(
    ONEVISION, tile_size=70, grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 70)
)
SIZES: list[Size] = [
    *[(w, h) for w, h in np.random.default_rng(7).integers(20, 1500, (12, 2)).tolist()],
    *[(1, 1), (84, 84), (168, 84), (3, 900), (900, 3), (1, 2000), (2000, 1), (85, 83)],
]


def flipped(settings: ImageSettings) -> list[list[int]]:
    """The pinpoints as transformers reads them: (height, width)."""
    return [[height, width] for width, height in settings.grid_pinpoints]


def noise(size: Size) -> Image.Image:
    rng = np.random.default_rng(size[0] * 10_007 + size[1])
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def our_pixels(image: Image.Image, settings: ImageSettings, **kwargs: bool) -> np.ndarray:
    views = torch.from_numpy(image_views(image, settings, **kwargs))
    normal = normalize_tiles(views, settings.image_mean, settings.image_std, torch.float32)
    return normal.numpy()


def processor(name: str, settings: ImageSettings) -> Any:
    """A Pillow image processor of transformers with the given settings."""
    model = {"LlavaNext": "llava_next", "LlavaOnevision": "llava_onevision"}.get(name, name.lower())
    side, kwargs = settings.tile_size, {}
    if settings.resize_mode == "shortest_edge_crop":
        kwargs["size"] = {"shortest_edge": side}
        kwargs["crop_size"] = {"height": side, "width": side}
    else:
        kwargs["size"] = {"height": side, "width": side}
    if settings.uses_grid:
        kwargs["image_grid_pinpoints"] = flipped(settings)
    return hf(model, "image_processing_pil", f"{name}ImageProcessorPil")(
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
        resample=Image.Resampling.BICUBIC,
        **kwargs,
    )


@pytest.mark.proves("A1")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "settings"),
    [("LlavaNext", CLIP_SMALL), ("LlavaOnevision", SIGLIP_SMALL), ("LlavaOnevision", CLIP_SMALL)],
)
def test_anyres_pixels(size: Size, name: str, settings: ImageSettings) -> None:
    if name == "LlavaOnevision":
        settings = replace(settings, resize_mode="squash")  # its processor never crops
    image = noise(size)
    theirs = processor(name, settings)(image, return_tensors="np")["pixel_values"][0]
    ours = our_pixels(image, settings)
    assert ours.shape == theirs.shape and theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() == 0.0


@pytest.mark.proves("A1")
@pytest.mark.parametrize(("name", "settings"), [("LlavaNext", NEXT), ("LlavaOnevision", ONEVISION)])
def test_anyres_pixels_at_full_tile_size(name: str, settings: ImageSettings) -> None:
    image = noise((733, 512))
    theirs = processor(name, settings)(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(our_pixels(image, settings), theirs)


@pytest.mark.proves("A9")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("small", [CLIP_SMALL, SIGLIP_SMALL])
def test_images_of_one_sample_are_padded(size: Size, small: ImageSettings) -> None:
    settings = replace(small, resize_mode="squash")
    image = noise(size)
    batch = processor("LlavaOnevision", settings)([[image, image]], return_tensors="np")
    theirs = batch["pixel_values"][0]
    assert np.array_equal(our_pixels(image, settings, single_view=True), theirs)
    pad = replace(settings, image_aspect_ratio="pad", grid_pinpoints=())
    assert np.array_equal(our_pixels(image, pad), theirs)


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
@pytest.mark.parametrize(("name", "small"), [("CLIP", CLIP_SMALL), ("Siglip", SIGLIP_SMALL)])
def test_square_pixels(size: Size, name: str, small: ImageSettings) -> None:
    settings = replace(small, image_aspect_ratio="square", grid_pinpoints=())
    image = noise(size)
    theirs = processor(name, settings)(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(our_pixels(image, settings), theirs)


FEATURE_SIZES: list[Size] = [
    *[(w, h) for w, h in np.random.default_rng(11).integers(1, 2600, (44, 2)).tolist()],
    *[(336, 336), (384, 384), (336, 672), (2304, 2304), (947, 1155), (1, 2000), (2000, 1)],
    # Sizes where the two roundings of unpad differ.
    *[(984, 205), (1056, 220), (1128, 235), (369, 820), (375, 1375), (738, 820), (1125, 1375)],
]


def their_features(
    settings: ImageSettings, size: Size, features: torch.Tensor, newline: torch.Tensor
) -> torch.Tensor:
    """Merged features [R, H] of transformers' pack_image_features on views [V, T, H]."""
    vision = SimpleNamespace(image_size=settings.tile_size, patch_size=settings.patch_size)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=flipped(settings))
    model = SimpleNamespace(config=config)
    image_sizes = torch.tensor([[size[1], size[0]]])
    if settings.max_merged_views is None:
        pack = hf("llava_next", "modeling", "LlavaNextModel").pack_image_features
        merged, _ = pack(model, [features], image_sizes, "default", image_newline=newline)
    else:
        pack = hf("llava_onevision", "modeling", "LlavaOnevisionModel").pack_image_features
        merged, _ = pack(
            model,
            [features],
            image_sizes,
            image_newline=newline,
            vision_aspect_ratio=settings.image_aspect_ratio,
        )
    return merged[0]


@pytest.mark.proves("A2")
@pytest.mark.parametrize(
    "settings",
    [NEXT, *(replace(ONEVISION, image_aspect_ratio=f"anyres_max_{n}") for n in (2, 4, 9, 16))],
    ids=lambda settings: settings.image_aspect_ratio,
)
def test_merged_features(settings: ImageSettings) -> None:
    generator = torch.manual_seed(3)
    newline = torch.randn(4, generator=generator)
    shrunk = 0
    for size in FEATURE_SIZES:
        layout = image_layout(size, settings)
        views = torch.randn(layout.num_views, settings.tokens_per_view, 4, generator=generator)
        theirs = their_features(settings, size, views, newline)
        # NEWLINE is -1, so that the newline as last row is what tap -1 reads.
        assert NEWLINE == -1
        rows = torch.cat([views.flatten(0, 1), newline[None]])
        taps, weights = torch.tensor(layout.taps), torch.tensor(layout.weights)
        ours = (rows[taps] * weights[:, :, None]).sum(1)
        assert ours.shape == theirs.shape, size
        if (weights[:, 1:] == 0).all():
            assert torch.equal(ours, theirs), size
        else:
            shrunk += 1
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (shrunk > 0) == (settings.max_merged_views is not None)


@pytest.mark.proves("A10")
@pytest.mark.parametrize(("side", "frames"), [(384, 1), (384, 5), (336, 3)])
def test_merged_frames_of_a_video(side: int, frames: int) -> None:
    video = VideoSettings(
        tile_size=side,
        patch_size=14,
        mm_patch_merge_type="spatial_unpad",
        mm_newline_position="one_token",
    )
    generator = torch.manual_seed(frames)
    features = torch.randn(frames, video.tokens_per_view, 4, generator=generator)
    newline = torch.randn(4, generator=generator)
    pool = hf("llava_onevision", "modeling", "LlavaOnevisionModel").apply_pooling
    # What get_video_features does between projector and return, which needs a tower to call.
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=side, patch_size=14))
    pooled = pool(SimpleNamespace(config=config), features)
    theirs = torch.cat([pooled.flatten(0, 1), newline[None]])
    layout = video_layout(frames, video)
    rows = torch.cat([features.flatten(0, 1), newline[None]])
    ours = (rows[torch.tensor(layout.taps)] * torch.tensor(layout.weights)[:, :, None]).sum(1)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def their_count(settings: ImageSettings, size: Size) -> int:
    """Placeholders that transformers' processor puts into the text for an image."""
    onevision = settings.max_merged_views is not None
    model, name = (
        ("llava_onevision", "LlavaOnevisionProcessor")
        if onevision
        else ("llava_next", "LlavaNextProcessor")
    )
    cls = hf(model, "processing", name)
    stub = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=flipped(settings)),
        patch_size=settings.patch_size,
        num_additional_image_tokens=0,
        num_image_tokens=settings.tokens_per_view,
        vision_aspect_ratio=settings.image_aspect_ratio,
    )
    stub._get_unpadded_features = lambda *args: cls._get_unpadded_features(stub, *args)
    side = settings.tile_size
    return cls._get_number_of_features(stub, size[1], size[0], side, side)


@pytest.mark.proves("A2")
@pytest.mark.parametrize("settings", [NEXT, ONEVISION])
def test_token_counts(settings: ImageSettings) -> None:
    random = np.random.default_rng(5).integers(1, 3000, (10_000, 2)).tolist()
    for width, height in [*FEATURE_SIZES, *random]:
        size = (width, height)
        assert number_of_tokens(size, settings) == their_count(settings, size), size
