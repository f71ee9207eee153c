"""One tiny checkpoint as transformers loads it and as we import it, and questions for both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_llava_next
from tiny_model import png

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.visuals import VisualSettings
from megatron_llava.text.known_templates import get_template
from megatron_llava.text.templates import Template
from megatron_llava.text.tokenizer import Tokenizer, load_tokenizer

SIZES = [(56, 56), (300, 50), None, (33, 200), (100, 80), (20, 15), (640, 480)]


@dataclass
class Pair:
    """A Hugging Face folder with its chat template, and our model of it."""

    folder: Path
    hf: Any
    model: Any
    settings: ImageSettings
    tokenizer: Tokenizer
    template: Template


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, single_rank: None) -> Pair:
    from megatron_llava.convert.convert import megatron_state_from_hf
    from megatron_llava.convert.hf_folder import read_mapping
    from megatron_llava.convert.hf_reader import HFReader
    from megatron_llava.convert.places import build_for_compute
    from megatron_llava.convert.root_files import run_config
    from megatron_llava.inference.hf_compare import HFFolder
    from megatron_llava.vision.settings import image_settings

    folder = tiny_llava_next(tmp_path_factory.mktemp("inference") / "hf", "llama", "clip")
    template = get_template("v1")
    (folder / "chat_template.jinja").write_text(template.chat_template_jinja())
    with HFReader(folder) as reader:
        mapping = read_mapping(folder, reader)
        state, _ = megatron_state_from_hf(reader, mapping)
        model = build_for_compute(mapping, torch.float32)
        model.load_state_dict(state, strict=True)
    return Pair(
        folder=folder,
        hf=HFFolder(str(folder), torch.device("cpu")),
        model=model,
        settings=image_settings(run_config(mapping, "model.yaml")),
        tokenizer=load_tokenizer(folder),
        template=template,
    )


@pytest.fixture(scope="session")
def make_questions(
    pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[Any]]:
    """Read records that ask the same about images of the given sizes (None: about no image)."""
    from megatron_llava.inference.questions import read_questions

    def make(sizes: list[Any], **options: Any) -> list[Any]:
        folder = tmp_path_factory.mktemp("questions")
        records = []
        for number, size in enumerate(sizes):
            several = size if isinstance(size, list) else [size] if size is not None else []
            names = [f"{number}_{index}.png" for index in range(len(several))]
            for name, one in zip(names, several, strict=True):
                (folder / name).write_bytes(png(one, number))
            text = "<image>\n" * len(names) + "what is in picture " + "and what " * number + "?"
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": f"cat {number}"}]
            records.append({"id": f"q{number}", "image": names, "conversations": turns})
        path = folder / "questions.json"
        path.write_text(json.dumps(records))
        return read_questions(
            path, VisualSettings(image_folder=folder), pair.tokenizer, pair.template, **options
        )

    return make


@pytest.fixture(scope="session")
def questions(make_questions: Callable[..., list[Any]]) -> list[Any]:
    """Seven questions of different lengths: one tile, wide, text only, tall, ..., scaled down."""
    return make_questions(SIZES)
