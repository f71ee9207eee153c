"""The quickstart's questions: balanced, reproducible, varied and disjoint."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", QUICKSTART / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


render = load("render_dataset")


def run(folder: Path, *flags: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    render.main(["--output", str(folder), "--train", "400", "--valid", "120", *flags])
    train, valid = (json.loads((folder / f"{s}.json").read_text()) for s in ("train", "valid"))
    return train, valid


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("render")
    run(path, "--hard")
    return path


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {s: json.loads((folder / f"{s}.json").read_text()) for s in ("train", "valid")}


def test_records_are_llava_records(folder: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    assert {name: len(rows) for name, rows in records.items()} == {"train": 400, "valid": 120}
    identifiers = set()
    for row in records["train"] + records["valid"]:
        identifiers.add(row["id"])
        human, gpt = row["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image>\n") and human["value"].count("<image>") == 1
        assert gpt["value"] and gpt["value"] == gpt["value"].strip()
        with Image.open(folder / row["image"]) as image:
            assert image.mode == "RGB" and image.size in render.PICTURE_SIZES
    assert len(identifiers) == 520


@pytest.mark.parametrize("split", ["train", "valid"])
def test_answers_are_balanced_within_a_kind(
    records: dict[str, list[dict[str, Any]]], split: str
) -> None:
    kinds = {kind.name: kind for kind in render.KINDS + render.HARD_KINDS}
    by_kind: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    for row in records[split]:
        by_kind[row["kind"]][row["conversations"][1]["value"]] += 1
    for name, counts in by_kind.items():
        assert set(counts) == set(kinds[name].answers)
        assert max(counts.values()) - min(counts.values()) <= 1, (name, counts)


def test_kinds_are_even_when_held_out_and_weighted_when_trained(
    records: dict[str, list[dict[str, Any]]],
) -> None:
    valid = Counter(row["kind"] for row in records["valid"])
    assert max(valid.values()) - min(valid.values()) <= 1
    train = Counter(row["kind"] for row in records["train"])
    assert train["position"] > 2 * train["color"]


def test_pictures_differ_in_size_and_never_repeat(
    folder: Path, records: dict[str, list[dict[str, Any]]]
) -> None:
    sizes, pixels = set(), set()
    rows = records["train"] + records["valid"]
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            sizes.add(image.size)
            pixels.add((image.size, image.tobytes()))
    assert len(sizes) >= 8
    assert len(pixels) == len(rows)


def test_the_answer_is_in_the_picture(
    folder: Path, records: dict[str, list[dict[str, Any]]]
) -> None:
    def is_near(pixel: tuple[int, ...], name: str) -> bool:
        pairs = zip(pixel, render.COLOURS[name], strict=True)
        return all(abs(channel - wanted) <= 12 for channel, wanted in pairs)

    for row in records["train"]:
        answer = row["conversations"][1]["value"]
        with Image.open(folder / row["image"]) as image:
            width, height = image.size
            points = {
                "left_color": (width // 4, height // 2),
                "right_color": (3 * width // 4, height // 2),
                "color": (width // 2, height // 2),
            }
            if row["kind"] in ("left_color", "right_color"):
                assert is_near(image.getpixel(points[row["kind"]]), answer), row
            elif row["kind"] == "color":
                colours = [pixel for _, pixel in image.getcolors()]
                assert any(is_near(pixel, answer) for pixel in colours), row
            elif row["kind"] == "position":
                x, y = render.POSITIONS[answer]
                pixel = image.getpixel((int(x * width), int(y * height)))
                assert any(is_near(pixel, name) for name in render.COLOURS), row


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        run(tmp_path / name, "--seed", seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "c")


def test_no_question_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        render.main(["--output", str(tmp_path / "x"), "--train", "0"])
    assert "--train is 0" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
