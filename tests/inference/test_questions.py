"""Held-out records as prompts, and the one-line errors about bad ones."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import tiny_tokenizer
from tiny_model import png

from megatron_llava.data.stored_video import pack_frames, unpack_frames
from megatron_llava.data.visuals import VisualSettings
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.conversation import encode_conversation
from megatron_llava.text.known_templates import get_template
from megatron_llava.text.templates import Turn
from megatron_llava.text.tokenizer import load_tokenizer
from megatron_llava.vision.frames import FrameSampling

pytestmark = pytest.mark.usefixtures("cpu_platform")

ASKED = "<image>\nhow many dogs?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return load_tokenizer(folder)


def record(*texts, **more):
    """Alternating human and gpt turns."""
    roles = ("human", "gpt") * len(texts)
    turns = [{"from": role, "value": t} for role, t in zip(roles, texts, strict=False)]
    return {"id": "seven", "conversations": turns, **more}


@pytest.fixture
def read(tmp_path, tokenizer):
    from megatron_llava.inference.questions import read_questions

    def read(*records, suffix="json", visuals=None, **options):
        (tmp_path / "dogs.png").write_bytes(png((50, 30), 1))
        path = tmp_path / f"questions.{suffix}"
        lines = [json.dumps(item) for item in records]
        path.write_text("[" + ",".join(lines) + "]" if suffix == "json" else "\n".join(lines))
        return read_questions(
            path,
            VisualSettings(image_folder=tmp_path, **(visuals or {})),
            tokenizer,
            get_template("v1"),
            **options,
        )

    return read


def error_of(read, *records, **options):
    with pytest.raises(ValueError) as caught:
        read(*records, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_question_is_the_first_human_turn_and_its_answer(read, suffix):
    made = record(ASKED, "three", "sure?", "yes", image="dogs.png", kind="count")
    plain = record("hello?", "hi")
    first, second = read(made, plain, suffix=suffix)
    assert (first.id, first.kind, first.truths) == ("seven", "count", ("three",))
    assert (first.text, first.images) == (ASKED, ("dogs.png",))
    assert (first.later, second.later) == (1, 0)
    assert first.prompt.image_sizes == ((50, 30),)
    assert (second.kind, second.images, second.prompt.images) == ("question", (), ())
    (unnamed,) = read(record(ASKED, "three", image="dogs.png", kind=None))
    assert unnamed.kind == "question"


def test_images_of_later_questions_are_not_of_the_first(read):
    both = record(ASKED, "three", "<image>\nand here?", "two", image=["dogs.png", "dogs.png"])
    (question,) = read(both)
    assert len(question.prompt.images) == len(question.prompt.image_sizes) == 1
    assert (question.prompt.token_ids == IMAGE_TOKEN_INDEX).sum() == 1
    too_few = record(ASKED, "three", "and here?", "two", image=["dogs.png", "dogs.png"])
    assert "1 <image> placeholders in the conversation, but 2 images" in error_of(read, too_few)


def test_a_prompt_is_the_beginning_of_the_training_conversation(read, tokenizer):
    question = read(record(ASKED, "three", image="dogs.png"))[0]
    turns = [Turn("human", ASKED), Turn("gpt", "three")]
    whole = encode_conversation(turns, 1, tokenizer, get_template("v1"), "").token_ids
    ids = question.prompt.token_ids
    assert np.array_equal(ids, whole[: len(ids)])
    assert tokenizer.decode(whole[len(ids) :].tolist()).strip() == "three"
    assert np.count_nonzero(ids == IMAGE_TOKEN_INDEX) == 1
    assert not question.prompt.label_mask.any()


@pytest.mark.proves("C3")
def test_several_images_are_asked_about_among_the_words_or_in_front(read, tokenizer):
    asked = "is <image> older than <image>?"
    made = record(asked, "no", image=["dogs.png", "dogs.png"])
    moved = "<image>\n<image>\nis Image 1 older than Image 2?"
    for front, text in ((False, asked), (True, moved)):
        (question,) = read(made, images_in_front=front)
        turns = [Turn("human", text), Turn("gpt", "no")]
        whole = encode_conversation(turns, 2, tokenizer, get_template("v1"), "whole").token_ids
        ids = question.prompt.token_ids
        np.testing.assert_array_equal(whole[: len(ids)], ids)
        assert len(question.prompt.images) == 2 and question.text == asked


def test_blank_images_keep_their_size_and_nothing_else(read):
    made = record(ASKED, "three", image="dogs.png")
    seen, blank = read(made)[0], read(made, blank_images=True)[0]
    assert blank.prompt.image_sizes == seen.prompt.image_sizes == ((50, 30),)
    assert np.array_equal(blank.prompt.token_ids, seen.prompt.token_ids)
    image = Image.open(io.BytesIO(blank.prompt.images[0]))
    assert (image.size, image.getcolors()) == ((50, 30), [(1500, (128, 128, 128))])
    assert Image.open(io.BytesIO(seen.prompt.images[0])).getcolors() != image.getcolors()


@pytest.mark.parametrize(
    "turns",
    [
        [("human", "why?")],
        [("gpt", "hello")],
        [("human", "why?"), ("human", "why not?")],
        [("human", "why?"), ("system", "be brief"), ("gpt", "so")],
    ],
    ids=len,
)
def test_a_question_without_an_answer_is_refused(read, turns):
    bad = {"id": 7, "conversations": [{"from": role, "value": text} for role, text in turns]}
    message = error_of(read, record("hello?", "hi"), bad)
    assert "questions.json: record 1 (id=7): no question with an answer after it" in message


@pytest.mark.parametrize("options", [{}, {"blank_images": True}])
def test_a_missing_image_is_named_with_its_record(read, tmp_path, options):
    bad = record(ASKED, "three", image="cats.png")
    message = error_of(read, record("hello?", "hi"), bad, suffix="jsonl", **options)
    assert "questions.jsonl:2: cannot read" in message
    assert str(tmp_path / "cats.png") in message and "No such file" in message


@pytest.mark.parametrize("options", [{}, {"blank_images": True}])
def test_a_file_that_is_no_image_is_named_with_its_record(read, tmp_path, options):
    (tmp_path / "notes.txt").write_text("no picture")
    message = error_of(read, record(ASKED, "three", image="notes.txt"), **options)
    assert "questions.json: record 0 (id=seven)" in message and "notes.txt" in message


def test_placeholders_and_images_must_match(read):
    message = error_of(read, record("how many dogs?", "three", image="dogs.png"))
    assert "record 0 (id=seven)" in message and "0 <image> placeholders" in message


def test_a_missing_file_is_named(tmp_path, tokenizer):
    from megatron_llava.inference.questions import read_questions

    with pytest.raises(ValueError, match=r"absent\.json: no such file"):
        read_questions(tmp_path / "absent.json", VisualSettings(), tokenizer, get_template("v1"))


def test_a_question_about_a_video(read, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):
        (frames / f"{number:02}.png").write_bytes(png((30, 20), number))
    made = record("<video>\nhow many dogs?", "three", video="frames")
    timed = {"add_time_instruction": True}
    (question,) = read(made, visuals=timed)
    assert question.prompt.image_sizes == ((10, 0),) and question.images == ("frames",)
    assert int((question.prompt.token_ids == IMAGE_TOKEN_INDEX).sum()) == 1
    (plain,) = read(made)
    assert len(plain.prompt.token_ids) < len(question.prompt.token_ids)
    (blank,) = read(made, blank_images=True)
    assert len(unpack_frames(blank.prompt.images[0], "blank")) == 10


@pytest.mark.proves("F1")
def test_a_question_about_the_frames_that_a_function_of_the_user_chooses(read, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):
        (frames / f"{number:02}.png").write_bytes(png((30, 20), number))
    made = record("<video>\nhow many dogs?", "three", video="frames")
    sampling = FrameSampling(frame_sampler="frame_samplers:sparse")
    (question,) = read(made, visuals={"sampling": sampling})
    files = [frames / f"{number:02}.png" for number in (0, 1, 3, 6, 10)]
    assert question.prompt.images == (pack_frames([file.read_bytes() for file in files]),)


def test_several_people_answered(read):
    people = ["three"] * 7 + ["3"] * 3
    (question,) = read(record(ASKED, "three", image="dogs.png", answers=people))
    assert question.truths == tuple(people)


@pytest.mark.parametrize("answers", ["three", [], [3], {"three": 10}])
def test_answers_that_are_no_texts_are_refused(read, answers):
    message = error_of(read, record(ASKED, "three", image="dogs.png", answers=answers))
    assert "record 0 (id=seven): answers is" in message and "give a list of texts" in message
