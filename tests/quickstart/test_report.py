"""The quickstart's report: right numbers, everything inside the page, clear refusals."""

from __future__ import annotations

import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
SPEC = importlib.util.spec_from_file_location("report", QUICKSTART / "report.py")
assert SPEC is not None and SPEC.loader is not None
report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(index: int, kind: str, text: str, truth: str) -> dict[str, Any]:
    return {
        "id": f"q{index}",
        "kind": kind,
        "image": "images/a.png",
        "question": "Is a < b?",
        "answer": text,
        "truth": truth,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "images" / "a.png")
    log = [{"iteration": i, "lm loss": 3.0 / i, "lr": 1e-3, "grad_norm": 1.0} for i in range(1, 41)]
    write_jsonl(tmp_path / "log.jsonl", [{"event": "start"}, *log])
    right = [answer(i, "color", "Red ", "red") for i in range(30)]
    wrong = [answer(i, "size", "<small>", "large") for i in range(30, 40)]
    write_jsonl(tmp_path / "answers.jsonl", right + wrong)
    blank = [answer(i, "color", "blue", "red") for i in range(27)]
    write_jsonl(tmp_path / "blank.jsonl", blank + right[:3] + wrong)
    return tmp_path


def flags(folder: Path) -> list[str]:
    files = ["--log", "log.jsonl", "--answers", "answers.jsonl", "--blank-answers", "blank.jsonl"]
    paths = [flag if flag.startswith("--") else str(folder / flag) for flag in files]
    return [*paths, "--images", str(folder), "--output", str(folder / "report.html")]


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td":
            self.cells.append(data.strip())


def parse(folder: Path) -> Collector:
    page = Collector()
    page.feed((folder / "report.html").read_text())
    return page


def test_page_is_self_contained_and_counts_right(folder: Path) -> None:
    report.main([*flags(folder), "--timing", "training=61.25"])
    text, page = (folder / "report.html").read_text(), parse(folder)
    assert len(page.sources) == 24 and all(s.startswith("data:image/png;") for s in page.sources)
    assert "script" not in page.tags and "link" not in page.tags and "polyline" in page.tags
    cells = [cell for cell in page.cells if cell]
    assert cells[:5] == ["color", "30", "100.0 %", "10.0 %", "+90.0"]
    assert cells[5:10] == ["size", "10", "0.0 %", "0.0 %", "+0.0"]
    assert cells[10:15] == ["all kinds", "40", "75.0 %", "7.5 %", "+67.5"]
    assert "40 iterations, final loss 0.0750; training 61.2 s." in text
    assert "&lt;small&gt;" in text and "<small>" not in text
    assert text.count('class="right"') == 14 and text.count('class="wrong"') == 10


def test_loss_curve_stays_inside_the_chart() -> None:
    rows = [{"iteration": i, "lm loss": loss} for i, loss in enumerate((9.7, 0.0, float("nan")))]
    chart = report.loss_chart(rows)
    points = chart.split('points="')[1].split('"')[0].split()
    assert len(points) == 2
    for x, y in (map(float, point.split(",")) for point in points):
        assert 0 <= x <= report.CHART_WIDTH and 0 <= y <= report.CHART_HEIGHT


@pytest.mark.parametrize(
    ("top", "ticks"), [(9.7, [0, 2, 4, 6, 8, 10]), (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0])]
)
def test_axis_ticks_are_round(top: float, ticks: list[float]) -> None:
    assert report.axis_ticks(top) == pytest.approx(ticks)


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> str:
    with pytest.raises(SystemExit):
        report.main([*flags(folder), *extra])
    assert not (folder / "report.html").exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_refusals_name_the_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--timing training" in refusal(folder, capsys, "--timing", "training")
    (folder / "images" / "a.png").rename(folder / "b.png")
    assert "a.png: no such picture (answer q0)" in refusal(folder, capsys)
    (folder / "answers.jsonl").write_text('{"id": "x", "kind": "color"}\n')
    assert "answers.jsonl:1: has no image, question" in refusal(folder, capsys)
    (folder / "answers.jsonl").write_text("\n{\n")
    assert "answers.jsonl:2: not JSON" in refusal(folder, capsys)


def test_different_kinds_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "blank.jsonl", [answer(0, "color", "red", "red")])
    assert "--blank-answers has ['color']" in refusal(folder, capsys)
