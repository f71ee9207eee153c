"""Answers in a report: right numbers, pictures inside the page, clear refusals."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_inputs import answer, write_jsonl

from megatron_llava.observe.report_answers import accuracy_table, answer_figures, read_answers

RIGHT = [answer(i, "color", "Red ", "red") for i in range(30)]
WRONG = [answer(i, "size", "<small>", "large") for i in range(30, 40)]
BLANK = [answer(i, "color", "blue", "red") for i in range(27)] + RIGHT[:3] + WRONG


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "images" / "a.png")
    return tmp_path


class Cells(HTMLParser):
    """The text of the cells of a table, the pictures, and the other tags."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.pictures, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])

    def handle_data(self, data):
        if self.tags[-1] == "td":
            self.cells[-1] += data


def test_accuracy_is_counted_by_kind(folder):
    rows = read_answers(write_jsonl(folder / "answers.jsonl", RIGHT + WRONG))
    cells = Cells(accuracy_table(rows, BLANK)).cells
    assert cells[:5] == ["color", "30", "100.0 %", "10.0 %", "+90.0"]
    assert cells[5:10] == ["size", "10", "0.0 %", "0.0 %", "+0.0"]
    assert cells[10:] == ["all kinds", "40", "75.0 %", "7.5 %", "+67.5"]
    assert Cells(accuracy_table(rows)).cells[:3] == ["color", "30", "100.0 %"]


def test_any_of_several_truths_is_right(folder):
    """As tools/evaluate.py counts; a file of before there were several has one."""
    several = answer(0, "name", "a Cat", "kitten", truths=["kitten", "a cat", "kitten"])
    wrong = answer(1, "name", "a dog", "kitten", truths=["kitten", "a cat", "kitten"])
    old = {key: value for key, value in RIGHT[0].items() if key != "truths"}
    rows = read_answers(write_jsonl(folder / "answers.jsonl", [several, wrong, old]))
    assert Cells(accuracy_table(rows)).cells[:3] == ["name", "2", "50.0 %"]
    assert Cells(accuracy_table(rows)).cells[3:6] == ["color", "1", "100.0 %"]
    figures = answer_figures(rows, 3, folder, "answers.jsonl")
    assert figures.count('class="right"') == 2
    assert figures.count("(wrong, it is <b>kitten or a cat</b>)") == 1
    for truths in ([], "kitten", None):
        write_jsonl(folder / "answers.jsonl", [several, {**wrong, "truths": truths}])
        with pytest.raises(ValueError, match=r"answers\.jsonl:2: truths is .*; write it again"):
            read_answers(folder / "answers.jsonl")


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match=r"--answers has 30 'color', 10 'size' but --blank-answ"):
        accuracy_table(RIGHT + WRONG, BLANK[1:])
    with pytest.raises(ValueError, match="but --blank-answers has 1 'color'; evaluate both"):
        accuracy_table(RIGHT, RIGHT[:1])


def test_kinds_take_turns_and_pictures_are_inside(folder):
    text = answer_figures(RIGHT + WRONG, 24, folder, "answers.jsonl")
    page = Cells(text)
    assert text.count('class="right"') == 14 and text.count('class="wrong"') == 10
    assert "&lt;small&gt;" in text and "<small>" not in text and "Is a &lt; b?" in text
    assert "&lt;image&gt;" not in text
    data = (folder / "images" / "a.png").read_bytes()
    assert page.pictures == [f"data:image/png;base64,{base64.b64encode(data).decode()}"] * 24


@pytest.mark.parametrize("name", ["large.jpg", "grey.png", "odd.webp"])
def test_a_large_picture_becomes_a_thumbnail(folder, name):
    mode = "L" if name == "grey.png" else "RGB"
    Image.new(mode, (64, 64) if name == "odd.webp" else (1500, 500)).save(folder / name)
    text = answer_figures([answer(0, "a", "b", "b", image=name)], 1, folder, "x")
    (source,) = Cells(text).pictures
    kind, data = re.fullmatch("data:image/(.*);base64,(.*)", source).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "jpeg" and picture.format == "JPEG"
    assert picture.size == ((64, 64) if name == "odd.webp" else (320, 107))


def test_a_question_without_image_or_of_a_video_says_so(folder):
    (folder / "frames").mkdir()
    named = [None, "film.mp4", "frames"]
    rows = [answer(i, "a", "", "b", image=name) for i, name in enumerate(named)]
    text = answer_figures(rows, 3, folder, "x")
    assert "no image" in text and "video film.mp4" in text and "video frames" in text
    assert "<i>nothing</i>" in text and "<img" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('\n{"id": 1}\n', "answers.jsonl:2: has no kind, image, question, answer, truth; write"),
        ("\n[1]\n", "answers.jsonl:2: has no id, kind"),
        ("{\n", "answers.jsonl:1: not JSON; write it again with tools/evaluate.py"),
        ("\n", "answers.jsonl: holds no answers"),
        ("\udcff", "answers.jsonl: cannot read answers: it is not UTF-8 text"),
        (None, "answers.jsonl: cannot read answers: No such file"),
    ],
)
def test_what_is_no_answer_is_named(tmp_path, content, words):
    path = tmp_path / "answers.jsonl"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_answers(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("images/b.png", "answers: q0: cannot read image"),
        ("images/cut.png", "answers: q0: image"),
        ("../secret.png", "answers: q0: image ../secret.png is not inside --image-folder"),
        ("/etc/passwd", "answers: q0: image /etc/passwd is not inside --image-folder"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_named(folder, image, words):
    data = (folder / "images" / "a.png").read_bytes()
    (folder / "images" / "cut.png").write_bytes(data[:-30])
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        answer_figures([answer(0, "a", "b", "c", image=image)], 1, folder, "answers")
    assert "\n" not in str(caught.value)


def test_pictures_need_a_folder():
    with pytest.raises(ValueError, match=r"names the image images/a\.png; give --image-folder"):
        answer_figures([answer(0, "a", "b", "c")], 1, None, Path("answers"))
