"""The quickstart's random checkpoint: transformers loads it, and it generates."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from megatron_llava.config.yaml_file import field_values, read_yaml_mapping
from megatron_llava.convert.hf_start import hf_model_fields

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
SPEC = importlib.util.spec_from_file_location("make_checkpoint", QUICKSTART / "make_checkpoint.py")
assert SPEC is not None and SPEC.loader is not None
make_checkpoint = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_checkpoint)

QUESTION = "What color is the shape?"
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<image>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


def write_data(path: Path) -> Path:
    turns = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": "red"},
    ]
    records = [{"id": str(i), "image": "x.png", "conversations": turns} for i in range(4)]
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    data = write_data(root / "train.json")
    make_checkpoint.main(["--output", str(root / "hf"), "--data", str(data)])
    return root / "hf"


def test_chat_template_is_qwen_1_5(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": parts}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == PROMPT


def test_words_of_the_data_are_one_token_each(folder: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    assert tokenizer.tokenize("red<|im_end|>\n") == ["red", "<|im_end|>", "\u010a"]
    assert len(tokenizer.tokenize("You are a helpful assistant.")) == 6
    text = "any other text, even \u00e4\u4f60"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_dry_run_knows_its_sizes(folder: Path) -> None:
    said = field_values(read_yaml_mapping(str(QUICKSTART / "model.yaml")), "model.yaml")
    made, _ = hf_model_fields(folder)
    del made["vocab_size"]  # that of the words in the pictures' questions
    assert {name: said[name] for name in made} == made


def test_folder_loads_and_generates(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaNextForConditionalGeneration.from_pretrained(folder)
    for size, views in (((56, 112), 3), ((112, 56), 3), ((168, 56), 4), ((112, 112), 5)):
        inputs = processor(images=Image.new("RGB", size), text=PROMPT, return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, views, 3, 56, 56)
        output = model.generate(**inputs, max_new_tokens=2)
        assert output.shape[1] > inputs["input_ids"].shape[1]


def test_seed_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.json")
    first = LlavaNextForConditionalGeneration.from_pretrained(folder).state_dict()
    for seed, same in (("0", True), ("1", False)):
        flags = ["--output", str(tmp_path / seed), "--data", str(data), "--seed", seed]
        make_checkpoint.main(flags)
        other = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / seed).state_dict()
        assert all(torch.equal(first[name], other[name]) for name in first) == same


def test_positions_are_drawn_large(folder: Path) -> None:
    model = LlavaNextForConditionalGeneration.from_pretrained(folder)
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    assert 1.8 < positions.std().item() < 2.2
