"""How many images a second one worker brings from the store to a batch.

    python benchmarks/loader.py --output benchmarks/results/loader.md

Against what training with transformers does: a DataLoader whose worker opens each file, and its
processor makes tokens and pixels. Both have one worker process, photographs of scikit-image in
JPEG, with sides of 300 to 1300 pixels, and a conversation each. Pixels are compared bit by bit
first. Ours are bytes, which the trainer normalises on its device; a row does that on the CPU too.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from preprocess import TEMPLATE, save_tokenizer
from report_header import header
from torch.utils.data import DataLoader, Dataset

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.store import Store
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.tiles import normalize_tiles

IMAGES = 192
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
CAPACITY = 32_768
COMPARED = 8

NEXT = ImageSettings(
    tile_size=336,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="hf",
    resize_mode="shortest_edge_crop",
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
ONEVISION = replace(
    NEXT,
    tile_size=384,
    image_aspect_ratio="anyres_max_9",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384),
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
SETTINGS = {"LLaVA-NeXT, CLIP-L/336": NEXT, "OneVision, SigLIP/384": ONEVISION}


def make(folder: Path, count: int) -> Path:
    """Records, image files, a tokenizer and a store; the path of the records."""
    import skimage.data

    from megatron_llava.data.preprocess import PreprocessSettings, preprocess

    random = np.random.default_rng(0)
    pictures = [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    (folder / "images").mkdir()
    records = []
    for number in range(count):
        size = tuple(int(side) for side in random.integers(300, 1300, 2))
        picture = pictures[number % len(pictures)].convert("RGB").resize(size)
        picture.save(folder / "images" / f"{number}.jpg", quality=90)
        turns = [
            {"from": "human", "value": "<image>\nWhat is in this picture?"},
            {"from": "gpt", "value": "A photograph. " * int(random.integers(2, 20))},
        ]
        records.append({"image": f"{number}.jpg", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    save_tokenizer(folder / "tokenizer", records, vocab_size=400)
    settings = PreprocessSettings(
        input=path,
        image_folder=folder / "images",
        tokenizer_model=str(folder / "tokenizer"),
        conversation_template=TEMPLATE,
        output_prefix=folder / "store",
    )
    preprocess(settings, log=io.StringIO())
    return path


def ours(folder: Path, settings: ImageSettings, normalised: bool) -> float:
    """Images a second."""
    store = Store(folder / "store")
    schedule = TrainingSchedule(store, settings, CAPACITY, seed=0, cache_path=folder)
    loader = PackedDataLoader(store, settings, schedule, num_workers=1)
    packs, images = len(schedule.plan(0)), 0
    started = time.perf_counter()
    for number, batch in enumerate(loader, start=1):
        images += batch.num_images
        if normalised:
            assert batch.tiles is not None
            tiles = torch.from_numpy(batch.tiles)
            normalize_tiles(tiles, settings.image_mean, settings.image_std, torch.float32)
        if number == packs:
            break
    return images / (time.perf_counter() - started)


class Processed(Dataset[dict[str, Any]]):
    """What transformers' processor makes of each record."""

    def __init__(self, folder: Path, records: Path, settings: ImageSettings) -> None:
        self._images, self._processor = folder / "images", image_processor(settings)
        self._tokenizer = None
        self._folder, self._settings = folder, settings
        self._records = json.loads(records.read_text())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from megatron_llava.text.known_templates import get_template

        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder / "tokenizer")
            self._tokenizer.chat_template = get_template(TEMPLATE).chat_template_jinja()
        record = self._records[index]
        roles = {"human": "user", "gpt": "assistant"}
        turns = record["conversations"]
        messages = [{"role": roles[t["from"]], "content": t["value"]} for t in turns]
        image = Image.open(self._images / record["image"]).convert("RGB")
        pixels = self._processor(images=image, return_tensors="pt")
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return {**self._tokenizer(text, return_tensors="pt"), **pixels}


def image_processor(settings: ImageSettings) -> Any:
    """The Pillow processor of transformers of the same settings."""
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    side = settings.tile_size
    common = {
        "image_grid_pinpoints": [[height, width] for width, height in settings.grid_pinpoints],
        "image_mean": list(settings.image_mean),
        "image_std": list(settings.image_std),
    }
    if settings.max_merged_views is None:
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **common
        )
    return LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, **common)


def theirs(folder: Path, records: Path, settings: ImageSettings) -> float:
    """Images a second."""
    dataset = Processed(folder, records, settings)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, shuffle=True)
    started = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - started)


def check_pixels(folder: Path, records: Path, settings: ImageSettings) -> None:
    """Some images: the same numbers, or the comparison means nothing."""
    from megatron_llava.data.collate import collate

    store, dataset = Store(folder / "store"), Processed(folder, records, settings)
    for index in range(COMPARED):
        tiles = collate([store.load(index)], settings).tiles
        assert tiles is not None
        found = normalize_tiles(
            torch.from_numpy(tiles), settings.image_mean, settings.image_std, torch.float32
        )
        expected = dataset[index]["pixel_values"][0]
        assert torch.equal(found, torch.as_tensor(expected)), f"image {index} differs"


def table(folder: Path, records: Path) -> Iterator[str]:
    """Lines of the report."""
    yield "| one worker | images/s | times as fast |"
    yield "|---|---:|---:|"
    for name, settings in SETTINGS.items():
        check_pixels(folder, records, settings)
        baseline = theirs(folder, records, settings)
        rates = {
            "packed batches of uint8 views": ours(folder, settings, normalised=False),
            "and normalised to float32 on the CPU": ours(folder, settings, normalised=True),
            "DataLoader and processor of transformers": baseline,
        }
        for what, rate in rates.items():
            yield f"| {name}: {what} | {rate:.1f} | {rate / baseline:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--output", help="file to write the report to as well")
    arguments = parser.parse_args()
    # A worker is one core's worth of work.
    torch.set_num_threads(1)
    lines = header()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = make(folder, arguments.images)
        report = "\n".join([*lines, "", *table(folder, records)])
    print(report)
    if arguments.output:
        Path(arguments.output).write_text(report + "\n")


if __name__ == "__main__":
    main()
