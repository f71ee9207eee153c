"""Batches on their way to a GPU; skipped, visibly, where there is none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_pixels_come_in_pinned_memory(tmp_path):
    from published_settings import NEXT

    from megatron_llava.data.loader import PackedDataLoader
    from megatron_llava.data.schedule import EvaluationSchedule
    from megatron_llava.data.store import Store
    from megatron_llava.data.store_writer import StoreWriter
    from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

    encoded = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 9, np.uint8)).save(encoded, "PNG")
    how = {"tokenizer_fingerprint": "none", "conversation_template": "none"}
    with StoreWriter(tmp_path / "s", **how) as writer:
        for _ in range(3):
            tokens = np.array([IMAGE_TOKEN_INDEX, 5], np.int32)
            writer.add(tokens, np.array([0, 1], np.uint8), [encoded.getvalue()], [(80, 60)])
        writer.finish()
    store = Store(tmp_path / "s")
    schedule = EvaluationSchedule(store, NEXT, 4096, packs_per_step=1)
    batches = PackedDataLoader(store, NEXT, schedule, num_workers=1, pin_memory=True)
    plain = PackedDataLoader(store, NEXT, schedule, num_workers=0)
    for batch, expected in zip(batches, plain, strict=True):
        assert torch.from_numpy(batch.tiles).is_pinned()
        on_gpu = batch.to_torch("cuda").tiles
        torch.cuda.synchronize()
        assert torch.equal(on_gpu.cpu(), torch.from_numpy(expected.tiles))
