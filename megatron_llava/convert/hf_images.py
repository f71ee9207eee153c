"""How the images of a Hugging Face LLaVA folder become tiles and tokens, by model class.

llava            one view of each image, no newline (LLaVA-1.5)
llava_next       AnyRes, each image of a sample on its own
llava_onevision  AnyRes with a bound; one padded view of each image where there are several
"""

from __future__ import annotations

import re
from typing import Any

from megatron_llava.convert.config_checks import number_pairs, three_numbers

WHERE = "image processor"
VIEWS_OF_CLASS = {
    "llava": "as_single",
    "llava_next": "as_single",
    "llava_onevision": "one_padded",
}
"""What transformers makes of each image of several, in the words of --multi-image-views."""

ANYRES_MAX = re.compile(r"anyres_max_[1-9][0-9]*")


def image_fields(top: dict[str, Any], processor: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The image fields of a mapping.

    Args:
        top: config.json with the defaults of its class.
        processor: settings of the image processor.
        image_size: side of a view, in pixels.

    Raises ValueError naming the setting where the two disagree or we have no such image path.
    """
    squash = _check_pixels(processor, image_size)
    fields: dict[str, Any] = {
        "image_resize_mode": "squash" if squash else "shortest_edge_crop",
        "image_mean": three_numbers(processor.get("image_mean"), f"{WHERE}: image_mean"),
        "image_std": three_numbers(processor.get("image_std"), f"{WHERE}: image_std"),
        "unpad_round": "hf",
        "multi_image_views": VIEWS_OF_CLASS[top["model_type"]],
    }
    if top["model_type"] == "llava":
        return fields | {
            "image_aspect_ratio": "pad" if processor.get("do_pad") else "square",
            "mm_patch_merge_type": "flat",
            "image_newline": False,
        }
    fields |= {
        "image_grid_pinpoints": _pinpoints(top, processor, image_size),
        "pinpoint_order": "hw",
        "mm_patch_merge_type": "spatial_unpad",
        "image_newline": True,
    }
    if top["model_type"] == "llava_next":
        return fields | {"image_aspect_ratio": "anyres"}
    ratio = top["vision_aspect_ratio"]
    if not isinstance(ratio, str) or not ANYRES_MAX.fullmatch(ratio):
        raise ValueError(f"config.json: vision_aspect_ratio is {ratio!r}; supported: anyres_max_N")
    return fields | {"image_aspect_ratio": ratio}


def _pinpoints(top: dict[str, Any], processor: dict[str, Any], image_size: int) -> list[list[int]]:
    """The grid list, its pairs (height, width) as transformers reads them; kept, not flipped."""
    key = "image_grid_pinpoints"
    pinpoints = number_pairs(top[key], f"config.json: {key}")
    for pair in pinpoints:
        if pair[0] % image_size or pair[1] % image_size:
            raise ValueError(
                f"config.json: image_grid_pinpoints has {pair}, no multiple of image_size "
                f"{image_size}"
            )
    theirs = number_pairs(processor.get(key, pinpoints), f"{WHERE}: {key}")
    if theirs != pinpoints:
        raise ValueError(
            f"{WHERE}: image_grid_pinpoints is {theirs}, but config.json says {pinpoints}"
        )
    return pinpoints


def _check_pixels(processor: dict[str, Any], image_size: int) -> bool:
    """Refuse pixels that we would not compute; whether views are squashed, else cropped."""
    supported = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    for key, expected in supported.items():
        if processor.get(key, expected) != expected:
            raise ValueError(f"{WHERE}: {key} is {processor[key]!r}; supported: {expected!r}")
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or abs(factor * 255 - 1) > 1e-9:
        raise ValueError(f"{WHERE}: rescale_factor is {factor!r}; supported: 1/255")
    size, crop = (_sides(processor, key) for key in ("size", "crop_size"))
    for name, sides in (("size", size), ("crop_size", crop)):
        for key, side in sides.items():
            if side != image_size:
                raise ValueError(
                    f"{WHERE}: {name}.{key} is {side!r}, but vision image_size is {image_size}"
                )
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(
            f"{WHERE}: size is {processor.get('size')!r:.60}; give shortest_edge, or height and "
            "width"
        )
    return "height" in size


def _sides(processor: dict[str, Any], key: str) -> dict[str, Any]:
    """The sides that a size states; a bare number is the shortest edge."""
    size = processor.get(key)
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if size is not None and not isinstance(size, dict):
        raise ValueError(f"{WHERE}: {key} is {size!r:.60}; give an object, or one number")
    return {side: value for side, value in (size or {}).items() if value is not None}
