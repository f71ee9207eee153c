"""How many conversations a second one core tokenises and writes, images copied as they are.

    python benchmarks/preprocess.py --output benchmarks/results/preprocess.md

Against a loop of the processor of transformers over the same records (chat template, tokens and
pixels of each, nothing written), which is what training on the fly does in every epoch. Both run on
one core; a first small store takes the imports, which a command pays once. Records:
one photograph of 500x375 pixels (JPEG) with a conversation of three questions and answers, a text
tokenizer with 32,000 entries trained here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from report_header import header

RECORDS = 20_000
WORDS = [
    "the",
    "a",
    "an",
    "of",
    "in",
    "on",
    "with",
    "and",
    "is",
    "are",
    "red",
    "blue",
    "green",
    "small",
    "large",
    "dog",
    "cat",
    "table",
    "street",
    "person",
    "standing",
    "sitting",
    "holding",
    "next",
    "to",
    "behind",
    "under",
    "light",
    "morning",
    "city",
    "water",
    "tree",
    "window",
    "door",
    "what",
    "how",
    "many",
    "where",
    "color",
    "describe",
    "image",
    "shows",
    "two",
    "three",
    "several",
    "people",
    "walking",
    "left",
    "right",
]
TEMPLATE = "qwen_1_5"


def sentence(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice(WORDS, words))


def make(folder: Path, count: int) -> Path:
    """Records with images, and a tokenizer; the path of the records."""
    generator = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    for number in range(64):
        noise = generator.integers(0, 60, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(noise + np.uint8(90)).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(images / f"{number}.jpg", quality=90)
    records = []
    for number in range(count):
        turns = []
        for turn in range(3):
            start = "<image>\n" if turn == 0 else ""
            question = start + sentence(generator, int(generator.integers(5, 15)))
            turns.append({"from": "human", "value": question})
            answer = sentence(generator, int(generator.integers(8, 60)))
            turns.append({"from": "gpt", "value": answer})
        image = f"{number % 64}.jpg"
        records.append({"id": str(number), "image": image, "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    save_tokenizer(folder / "tokenizer", records, vocab_size=32_000)
    return path


def make_few(records: Path, count: int) -> Path:
    """The first records in a file of their own."""
    path = records.with_name("few.json")
    path.write_text(json.dumps(json.loads(records.read_text())[:count]))
    return path


def save_tokenizer(folder: Path, records: list[dict], vocab_size: int) -> None:
    """A byte BPE of the records' texts, with the special tokens of TEMPLATE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        (turn["value"] for r in records for turn in r["conversations"]), trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)


def ours(folder: Path, records: Path, verify: str) -> float:
    """Seconds to make a store in one process."""
    from megatron_llava.data.preprocess import PreprocessSettings, preprocess

    settings = PreprocessSettings(
        input=records,
        image_folder=folder / "images",
        tokenizer_model=str(folder / "tokenizer"),
        conversation_template=TEMPLATE,
        output_prefix=folder / f"store-{verify}",
        overwrite=True,
        verify_images=verify,
    )
    return preprocess(settings, log=io.StringIO()).seconds


def theirs(folder: Path, records: Path, count: int) -> float:
    """Seconds for `count` records with the processor of transformers."""
    from transformers import AutoTokenizer, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    from megatron_llava.text.known_templates import get_template

    grids = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=grids,
        ),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=get_template(TEMPLATE).chat_template_jinja(),
    )
    taken = json.loads(records.read_text())[:count]
    roles = {"human": "user", "gpt": "assistant"}
    started = time.perf_counter()
    for record in taken:
        turns = record["conversations"]
        messages = [{"role": roles[t["from"]], "content": t["value"]} for t in turns]
        text = processor.apply_chat_template(messages, tokenize=False)
        image = Image.open(folder / "images" / record["image"]).convert("RGB")
        processor(images=image, text=text, return_tensors="pt")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--output", help="file to write the report to as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        records = make(folder, arguments.records)
        ours(folder, make_few(records, 100), "header")
        rates = {
            verify: arguments.records / ours(folder, records, verify)
            for verify in ("header", "full")
        }
        few = max(arguments.records // 100, 20)
        baseline = few / theirs(folder, records, few)
    lines = [
        "| one core | conversations/s | times as fast |",
        "|---|---:|---:|",
        f"| store, image headers read (`--verify-images header`) | {rates['header']:,.0f} | "
        f"{rates['header'] / baseline:.0f} |",
        f"| store, every image decoded once (`full`, the default) | {rates['full']:,.0f} | "
        f"{rates['full'] / baseline:.0f} |",
        f"| loop of transformers' LlavaNextProcessor, nothing written | {baseline:.1f} | 1 |",
    ]
    report = "\n".join([*header(), "", *lines])
    print(report)
    if arguments.output:
        Path(arguments.output).write_text(report + "\n")


if __name__ == "__main__":
    main()
