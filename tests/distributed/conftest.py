"""The pool, and one small training set-up that the distributed tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed_jobs import import_checkpoint, preprocess_records, train
from distributed_pool import Pool
from PIL import Image
from tiny_checkpoints import tiny_llava_next
from tiny_llava import tiny_llava

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"layers": 8},
    # Inputs of every linear are a multiple of 64 on two tensor-parallel ranks too.
    "wide": {"hidden": 128, "ffn": 256},
    "tied": {"text": "qwen2", "vision": "siglip", "tied": True},
}
TOWERS = ("dinov2", "aimv2-native")
"""Models with a tower that transformers computes."""
ANSWERS = ("red", "blue cat", "three dogs on the grass", "no")


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Setup:
    return Setup(tmp_path_factory.mktemp("setup"), pool)


@pytest.fixture(scope="session")
def one_rank(pool: Pool, setup: Setup) -> Callable[..., dict[str, Any]]:
    """What one rank makes of a command line of ``Setup.arguments``, trained once for each."""

    @cache
    def run(*flags: str, **options: Any) -> dict[str, Any]:
        return pool.run(train, setup.arguments(*flags, **options), with_shards=True)[0]

    return run


class Setup:
    """Converted checkpoints, and a store of 48 image samples and 16 text-only ones."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        self.folder, self._pool = folder, pool
        self.root = self.checkpoint("plain")
        self.store = folder / "train"
        records = _records(folder / "images")
        pool.run(preprocess_records, records, folder, folder / "plain-hf", self.store)

    @cache  # noqa: B019 - lives as long as the pytest run
    def checkpoint(self, model: str) -> Path:
        """Root of one of ``MODELS`` or ``TOWERS``, made when it is first asked for."""
        hf, root = self.folder / f"{model}-hf", self.folder / f"{model}-megatron"
        # Eight heads, for tensor times context parallelism over up to eight ranks.
        if model in TOWERS:
            tiny_llava(hf, text="vicuna", tower=model, layers=4)
        else:
            tiny_llava_next(hf, heads=8, **MODELS[model])
        self._pool.run(import_checkpoint, hf, root)
        return root

    def arguments(
        self, *more: str, model: str = "plain", steps: int = 5, batch: int = 4
    ) -> list[str]:
        """A command line over the store: packs of 384 positions, ``batch`` in a global batch."""
        return [
            "--device=cpu",
            f"--pretrained-checkpoint={self.checkpoint(model)}",
            f"--data-path={self.store}",
            "--seq-length=384",
            f"--global-batch-size={batch}",
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
