"""One store, many settings: lengths that packs are planned with are positions of the model's input,
and no setting of images or packs asks for the store to be made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published_settings import NEXT, ONEVISION

from megatron_llava.data.collate import collate
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.store import Store
from megatron_llava.data.store_writer import StoreWriter
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

SAMPLES = 10_000
PACK = 100

SETTINGS = {
    "next": NEXT,
    "next_original": replace(NEXT, unpad_round="llava"),
    "next_other_pinpoints": replace(NEXT, grid_pinpoints=((672, 672), (336, 1344))),
    "onevision": ONEVISION,
    "onevision_max_2": replace(ONEVISION, image_aspect_ratio="anyres_max_2"),
    "pad": replace(NEXT, image_aspect_ratio="pad", grid_pinpoints=(), mm_patch_merge_type="flat"),
    "square": replace(NEXT, image_aspect_ratio="square", grid_pinpoints=()),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Samples of one image of a random size, every tenth of two or three; none is decoded here."""
    random = np.random.default_rng(11)
    prefix = tmp_path_factory.mktemp("sizes") / "store"
    with StoreWriter(prefix, tokenizer_fingerprint="none", conversation_template="none") as writer:
        for number in range(SAMPLES):
            images = 1 if number % 10 else 2 + number // 10 % 2
            # Sides spread over orders of magnitude, so that strips are among them.
            sizes = np.exp(random.uniform(np.log(8), np.log(4000), (images, 2))).astype(int)
            tokens = np.full(images + int(random.integers(2, 60)), 5, dtype=np.int32)
            tokens[1 : images + 1] = IMAGE_TOKEN_INDEX
            mask = (tokens != IMAGE_TOKEN_INDEX).astype(np.uint8)
            writer.add(tokens, mask, [b"?"] * images, [(int(w), int(h)) for w, h in sizes])
        writer.finish()
    return Store(prefix)


@pytest.mark.parametrize("name", SETTINGS)
def test_planned_lengths_are_what_the_model_is_given(store, name):
    settings = SETTINGS[name]
    lengths, views = sample_sizes(store, settings)
    for first in range(0, SAMPLES, PACK):
        samples = [store.load(i, with_images=False) for i in range(first, first + PACK)]
        batch = collate(samples, settings, with_pixels=False)
        wanted = slice(first, first + PACK)
        np.testing.assert_array_equal(np.diff(batch.cu_seqlens), lengths[wanted])
        assert batch.num_views == views[wanted].sum()
        # Every position is made of something: a text token, a feature or a newline.
        assert (batch.weights != 0).any(axis=1).all()


def test_other_settings_plan_anew_from_the_same_files(store, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in files(store)}
    plans = {}
    for name, settings in SETTINGS.items():
        for capacity in (16_384, 32_768):
            schedule = TrainingSchedule(store, settings, capacity, seed=1, cache_path=tmp_path)
            plan = schedule.plan(0)
            taken = np.concatenate([plan.pack(number) for number in range(len(plan))])
            assert sorted(taken.tolist()) == list(range(SAMPLES))
            plans[name, capacity] = schedule.fingerprint
    assert len(set(plans.values())) == len(plans), "two settings share one plan"
    assert {path.name: path.stat().st_mtime_ns for path in files(store)} == before


def files(store: Store) -> list[Path]:
    return sorted(store.prefix.parent.iterdir())
