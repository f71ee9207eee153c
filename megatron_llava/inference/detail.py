"""How finely the images of a question are seen: by its task, or by what the images show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.row_plan import is_video
from megatron_llava.inference.questions import Question
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.tiles import open_image

MAX_PATCHES = {"high": 6, "medium": 4, "low": 2}
"""Tiles of the largest grid (seed 004)."""

DETAIL_OF_TASK = {
    "ocr": "high",
    "text_vqa": "high",
    "document": "high",
    "caption": "medium",
    "vqa": "medium",
    "classification": "low",
}

IsDetailed = Callable[[Image.Image], bool]


def select_resolution(
    task: str, images: Sequence[Image.Image], is_detailed: IsDetailed | None = None
) -> str:
    """'high', 'medium' or 'low'.

    Args:
        task: decides alone where DETAIL_OF_TASK has it.
        images: RGB; read for other tasks only.
        is_detailed: whether an image has small text or fine detail; one such image makes it 'high',
            and without the function it is 'medium'.
    """
    if task in DETAIL_OF_TASK:
        return DETAIL_OF_TASK[task]
    return "high" if is_detailed and any(map(is_detailed, images)) else "medium"


def settings_of_detail(settings: ImageSettings, detail: str) -> ImageSettings:
    """The settings with the grids of that many tiles; the choice among them stays.

    Raises:
        ValueError: the model has no grids, or learned no place for some of the new tiles.
    """
    most = MAX_PATCHES[detail]
    if not settings.uses_grid:
        raise ValueError(
            f"--grids-by-kind gives {detail} detail {most} tiles, and the model's "
            f"--image-aspect-ratio {settings.image_aspect_ratio} has none: drop the flag"
        )
    grids = parse_grid_pinpoints(f"max_patches={most}", settings.tile_size)
    changed = replace(settings, grid_pinpoints=grids)
    pairs = zip(changed.position_grid, settings.position_grid, strict=True)
    if any(new > learned for new, learned in pairs):
        raise ValueError(
            f"--grids-by-kind gives {detail} detail grids of up to {most} tiles in a row, and "
            f"--tile-position-embedding learned {settings.position_grid} rows and columns: drop "
            "the flag"
        )
    return changed


def groups_by_detail(
    questions: Sequence[Question], settings: ImageSettings, is_detailed: IsDetailed | None
) -> list[tuple[ImageSettings, list[int]]]:
    """Settings, and the numbers of the questions that are asked with them; tasks are the kinds.

    Raises:
        ValueError: as `settings_of_detail`, or an image that cannot be read.
    """
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(_detail(question, is_detailed), []).append(number)
    return [(settings_of_detail(settings, detail), numbers) for detail, numbers in groups.items()]


def _detail(question: Question, is_detailed: IsDetailed | None) -> str:
    images: list[Image.Image] = []
    if is_detailed is not None and question.kind not in DETAIL_OF_TASK:
        prompt = question.prompt
        images = [
            open_image(data, prompt.source)
            for data, size in zip(prompt.images, prompt.image_sizes, strict=True)
            if not is_video(size)
        ]
    return select_resolution(question.kind, images, is_detailed)
