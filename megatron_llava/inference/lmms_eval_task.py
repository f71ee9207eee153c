"""Questions of a LLaVA file as a task that lmms-eval runs, to score an export with it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_llava.data.records import RecordFile, decoded_record, parse_record
from megatron_llava.inference import lmms_eval_functions
from megatron_llava.inference.truths import first_question, images_asked_about, truths_of
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.pieces import check_unicode


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What to write.

    Attributes:
        input: LLaVA .json or .jsonl; the first question of a record is asked, its images in front.
        image_folder: where they are.
        output: folder that is made; its name is the task's.
        max_new_tokens: of an answer.
    """

    input: Path
    image_folder: Path
    output: Path
    max_new_tokens: int = 32


class _Function(str):
    """A function of functions.py, for the tag by which lmms-eval finds it."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Function, lambda dumper, name: dumper.represent_scalar("!function", f"functions.{name}")
)


def write_task(settings: TaskSettings) -> int:
    """Write NAME.yaml, functions.py and questions.jsonl; how many questions there are.

    Raises:
        ValueError: one line naming the record, the image or the folder.
    """
    output, name = settings.output, settings.output.name
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"--output {output}: its name is the task's: letters, digits and _ only")
    if output.exists():
        raise ValueError(f"--output {output}: already exists; give a new name or remove it first")
    if settings.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {settings.max_new_tokens}: must be 1 or more")
    docs = [_doc(settings, source, raw) for source, raw in RecordFile(settings.input)]
    output.mkdir(parents=True)
    lines = "".join(json.dumps(doc) + "\n" for doc in docs)
    (output / "questions.jsonl").write_text(lines, encoding="utf-8")
    shutil.copyfile(lmms_eval_functions.__file__, output / "functions.py")
    text = yaml.dump(_task(settings), Dumper=_Dumper, sort_keys=False)
    (output / f"{name}.yaml").write_text(text, encoding="utf-8")
    return len(docs)


def _task(settings: TaskSettings) -> dict[str, Any]:
    questions = str((settings.output / "questions.jsonl").absolute())
    return {
        "task": settings.output.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": questions}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": _Function("images"),
        "doc_to_text": _Function("question"),
        "doc_to_target": _Function("truth"),
        "process_results": _Function("score"),
        "generation_kwargs": {
            "max_new_tokens": settings.max_new_tokens,
            "temperature": 0,
            "do_sample": False,
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": [{"version": 1.0}],
    }


def _doc(settings: TaskSettings, source: str, raw: Any) -> dict[str, Any]:
    fields = decoded_record(raw, source)
    record = parse_record(fields, source)
    if record.videos:
        raise ValueError(f"{source}: has a video, and such a task has images only: leave it out")
    human = first_question(record, source)
    if not all(isinstance(image, str) for image in record.images):
        raise ValueError(f"{source}: its images are no files: write them to --image-folder")
    number = images_asked_about(record.turns, human, len(record.images), source)
    images = record.images[:number]
    paths = [(settings.image_folder / str(image)).absolute() for image in images]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{source}: no image {path}")
    words = record.turns[human].text.replace(IMAGE_PLACEHOLDER, " ")
    truths = truths_of(fields.get("answers"), record.turns[human + 1].text, source)
    try:
        for text in (record.id, words, *truths):
            check_unicode(text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return {
        "id": record.id,
        "images": [str(path) for path in paths],
        "question": re.sub(r" *\n *", "\n", re.sub(" +", " ", words)).strip(),
        "truths": list(truths),
    }
