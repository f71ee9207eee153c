"""The pool, and one small training set-up that the distributed tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed_jobs import import_checkpoint, preprocess_records
from distributed_pool import Pool
from PIL import Image
from tiny_checkpoints import tiny_llava_next

ANSWERS = ("red", "blue cat", "three dogs on the grass", "no")


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Setup:
    return Setup(tmp_path_factory.mktemp("setup"), pool)


class Setup:
    """A converted checkpoint and a store of 48 image samples and 16 text-only ones."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        self.folder = folder
        self.hf = tiny_llava_next(folder / "hf", "llama", "clip")
        self.tied_hf = tiny_llava_next(folder / "tied", "qwen2", "siglip", tied=True)
        self.root, self.tied_root = folder / "megatron", folder / "tied-megatron"
        self.store = folder / "train"
        pool.run(import_checkpoint, self.hf, self.root)
        pool.run(import_checkpoint, self.tied_hf, self.tied_root)
        records = _records(folder / "images")
        pool.run(preprocess_records, records, folder, self.hf, self.store)

    def arguments(self, *more: str, tied: bool = False, steps: int = 5) -> list[str]:
        """A command line over the store: 4 packs of 384 positions in a global batch."""
        root = self.tied_root if tied else self.root
        return [
            "--device=cpu",
            f"--pretrained-checkpoint={root}",
            f"--data-path={self.store}",
            "--seq-length=384",
            "--global-batch-size=4",
            f"--train-iters={steps}",
            "--lr=1e-3",
            "--lr-decay-style=cosine",
            "--lr-warmup-iters=2",
            "--weight-decay=0.1",
            "--num-workers=0",
            *more,
        ]


def _records(folder: Path) -> list[dict]:
    folder.mkdir()
    generator = np.random.default_rng(0)
    records = []
    for number in range(48):
        width, height = (int(side) for side in generator.integers(30, 180, 2))
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        records.append(_record(number, "<image>\nwhat is it?", f"images/{number}.png"))
    return records + [_record(number, "hello, who is there?", None) for number in range(48, 64)]


def _record(number: int, question: str, image: str | None) -> dict:
    turns = [
        {"from": "human", "value": question},
        {"from": "gpt", "value": ANSWERS[number % len(ANSWERS)]},
    ]
    record = {"id": str(number), "conversations": turns}
    return record if image is None else {**record, "image": image}
