"""Tasks for lmms-eval: their files, and where lmms-eval is installed a run of it on an export."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from stage0_parts import language_model, vision_tower

from megatron_llava.convert.stage0 import Stage0, merge_to_hf
from megatron_llava.inference.lmms_eval_task import TaskSettings, write_task

TOOL = Path(__file__).parents[2] / "tools" / "write_lmms_eval_task.py"
RECORDS = [
    ("<image>\nwhat is it?", "a Cat", ["one.png"], None),
    ("is <image> <image> the same?", "no", ["one.png", "two.png"], ["no", "not the same"]),
    ("hello?", "yes", [], None),
]


@pytest.fixture
def questions(tmp_path):
    for name in ("one", "two"):
        Image.new("RGB", (90, 60), (200, 30, len(name))).save(tmp_path / f"{name}.png")
    records = []
    for number, (question, answer, images, answers) in enumerate(RECORDS):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        record = {"id": str(number), "conversations": turns}
        record |= {"image": images} if images else {}
        records.append(record | ({"answers": answers} if answers else {}))
    (tmp_path / "questions.json").write_text(json.dumps(records))
    return tmp_path / "questions.json"


def settings_of(questions: Path, **changes) -> TaskSettings:
    folder = questions.parent
    values = {"input": questions, "image_folder": folder, "output": folder / "mine"}
    return TaskSettings(**{**values, **changes})


def functions_of(folder: Path):
    spec = importlib.util.spec_from_file_location("functions", folder / "functions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.proves("E1")
def test_a_task_has_the_questions_and_knows_right_answers(questions):
    assert write_task(settings_of(questions)) == 3
    folder = questions.parent / "mine"
    docs = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    functions = functions_of(folder)
    assert [functions.question(doc) for doc in docs] == ["what is it?", "is the same?", "hello?"]
    assert [len(functions.images(doc)) for doc in docs] == [1, 2, 0]
    assert [functions.truth(doc) for doc in docs] == ["a Cat", "no", "yes"]
    for number, answer, right in [(0, " a cat\n", 1.0), (0, "cat", 0.0), (1, "Not the same", 1.0)]:
        assert functions.score(docs[number], [answer]) == {"exact_match": right}
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: node.value)
    task = yaml.safe_load((folder / "mine.yaml").read_text())
    assert task["task"] == "mine" and task["process_results"] == "functions.score"
    for key in ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results"):
        assert hasattr(functions, task[key].removeprefix("functions."))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "a-b"}, "a-b: its name is the task's: letters, digits and _ only"),
        ({"output": "."}, "its name is the task's|already exists"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: must be 1 or more"),
        ({"image_folder": "absent"}, "record 0.*no image .*one.png"),
    ],
)
def test_refusals(questions, changes, message):
    for key in ("output", "image_folder"):
        if key in changes:
            changes = {**changes, key: questions.parent / changes[key]}
    before = sorted(questions.parent.iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        write_task(settings_of(questions, **changes))
    assert "\n" not in str(caught.value)
    assert sorted(questions.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        (["what?", "yes"], 1, "0 <image> placeholders in the conversation, but 1 images"),
        (["<image> what?", "yes"], 2, "1 <image> placeholders in the conversation, but 2 images"),
        (["<image> what?", "yes \ud800"], 1, "not valid Unicode: half of a surrogate pair"),
        (["<image> \udc00?", "yes"], 1, "not valid Unicode: half of a surrogate pair"),
    ],
)
def test_a_record_that_cannot_be_asked_is_refused(questions, turns, images, message):
    """As tools/evaluate.py does."""
    record = {
        "id": "bad",
        "image": ["one.png", "two.png"][:images],
        "conversations": [
            {"from": role, "value": text}
            for role, text in zip(("human", "gpt"), turns, strict=True)
        ],
    }
    questions.write_text(json.dumps([record]))
    with pytest.raises(ValueError, match=f"record 0.*{message}"):
        write_task(settings_of(questions))
    assert not (questions.parent / "mine").exists()


def test_images_of_later_questions_are_left_out(questions):
    later = [("human", "<image> and this?"), ("gpt", "no")]
    turns = [("human", "<image> what?"), ("gpt", "yes"), *later]
    record = {
        "id": "two",
        "image": ["one.png", "two.png"],
        "conversations": [{"from": role, "value": text} for role, text in turns],
    }
    questions.write_text(json.dumps([record]))
    write_task(settings_of(questions))
    (line,) = (questions.parent / "mine" / "questions.jsonl").read_text().splitlines()
    assert [Path(image).name for image in json.loads(line)["images"]] == ["one.png"]


def test_a_video_is_refused(tmp_path):
    turns = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "yes"}]
    records = [{"id": "0", "video": "a.mp4", "conversations": turns}]
    (tmp_path / "videos.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="has a video"):
        write_task(settings_of(tmp_path / "videos.json"))


@pytest.mark.proves("E1")
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_lmms_eval_runs_it_on_an_export(questions, model_type):
    """Without OneVision's class, whose processor needs a torchvision that fits torch."""
    pytest.importorskip("lmms_eval")
    folder = questions.parent
    export = folder / "hf"
    parts = Stage0(
        language_model=language_model(folder / "llm", "vicuna"),
        vision_tower=vision_tower(folder / "tower", "clip-336"),
        model_type=model_type,
        conversation_template="vicuna_v1",
    )
    merge_to_hf(parts, export)
    with_images = json.loads(questions.read_text())[: 1 if model_type == "llava" else 2]
    questions.write_text(json.dumps(with_images))
    write_task(settings_of(questions, max_new_tokens=4))
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--tasks", "mine"]
    command += ["--include_path", folder / "mine", "--output_path", folder / "out"]
    command += ["--model_args", f"pretrained={export},device=cpu,device_map=cpu,dtype=float32"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [*map(str, command), "--batch_size", "1", "--log_samples"],
        env={**os.environ, **offline, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert "Throughput Summary" in said, said[-3000:]  # its status is 0 in any case
    (samples,) = (folder / "out").rglob("*samples_mine.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["target"] for line in lines] == ["a Cat", "no"][: len(lines)]
    assert len(lines) == len(with_images) and all(line["filtered_resps"] for line in lines)
