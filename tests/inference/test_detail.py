"""Grids by the task of a question, or by what its images show."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from published_settings import NEXT

from megatron_llava.inference.detail import (
    DETAIL_OF_TASK,
    groups_by_detail,
    select_resolution,
    settings_of_detail,
)
from megatron_llava.vision.token_layout import number_of_views

pytestmark = [pytest.mark.usefixtures("cpu_platform"), pytest.mark.proves("A15")]

CHOICE = replace(NEXT, grid_choice="aspect_ratio")
SCREEN = 1920, 1080


def is_wide(image: Image.Image) -> bool:
    return image.width > image.height


def fail(image: Image.Image) -> bool:
    raise AssertionError("the task decides")


def question(kind: str, *sizes: tuple[int, int]) -> SimpleNamespace:
    images = []
    for size in sizes:
        stream = io.BytesIO()
        Image.new("RGB", size).save(stream, "PNG")
        images.append(stream.getvalue())
    prompt = SimpleNamespace(images=tuple(images), image_sizes=sizes, source=kind)
    return SimpleNamespace(kind=kind, prompt=prompt)


def test_the_task_decides_where_it_is_known():
    for task, detail in {"ocr": "high", "vqa": "medium", "classification": "low"}.items():
        assert select_resolution(task, [Image.new("RGB", (9, 5))], fail) == detail
    assert sorted(set(DETAIL_OF_TASK.values())) == ["high", "low", "medium"]


def test_else_what_the_images_show():
    wide, tall = Image.new("RGB", (9, 5)), Image.new("RGB", (5, 9))
    assert select_resolution("riddle", [tall, wide], is_wide) == "high"
    assert select_resolution("riddle", [tall], is_wide) == "medium"
    assert select_resolution("riddle", [wide]) == "medium"


@pytest.mark.parametrize(("detail", "views"), [("high", 7), ("medium", 3), ("low", 3)])
def test_views_of_a_screen(detail, views):
    settings = settings_of_detail(CHOICE, detail)
    most = {"high": 6, "medium": 4, "low": 2}[detail]
    tiles = [width * height // 336**2 for width, height in settings.grid_pinpoints]
    assert max(tiles) == most
    assert number_of_views(SCREEN, settings) == views
    assert settings.grid_choice == "aspect_ratio"


def test_questions_of_like_detail_are_asked_together():
    asked = [
        question("ocr", (4, 4)),
        question("riddle", (4, 9)),
        question("riddle", (9, 4)),
        question("text only"),
        question("classification", (9, 4)),
    ]
    groups = groups_by_detail(asked, CHOICE, is_wide)
    expected = {"high": [0, 2], "medium": [1, 3], "low": [4]}
    assert groups == [(settings_of_detail(CHOICE, d), numbers) for d, numbers in expected.items()]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            replace(NEXT, image_aspect_ratio="pad", grid_pinpoints=()),
            "--grids-by-kind gives high detail 6 tiles, and the model's --image-aspect-ratio pad",
        ),
        (replace(NEXT, tile_position_embedding=True), r"learned \(3, 3\) rows and columns"),
    ],
)
def test_models_without_such_grids(settings, named):
    with pytest.raises(ValueError, match=named):
        settings_of_detail(settings, "high")
