"""Stores of random samples, and flags of a model for them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

VOCABULARY, TEXT, ANSWER, SAMPLES = 8000, 256, 64, 64
TILE, PATCH, IMAGE = 112, 14, (224, 224)

_MODEL = {
    "num-layers": 4,
    "hidden-size": 256,
    "ffn-hidden-size": 704,
    "num-attention-heads": 8,
    "num-query-groups": 4,
    "max-position-embeddings": 4096,
    "vocab-size": VOCABULARY,
    "norm-epsilon": 1e-6,
    "rotary-base": 1e4,
    "vision-model-type": "clip",
    "vision-num-layers": 4,
    "mm-vision-select-layer": -1,
    "vision-hidden-size": 192,
    "vision-ffn-hidden-size": 768,
    "vision-num-attention-heads": 4,
    "vision-image-size": TILE,
    "vision-patch-size": PATCH,
    "vision-norm-epsilon": 1e-5,
    "vision-hidden-act": "quick_gelu",
    "image-aspect-ratio": "anyres",
    "image-grid-pinpoints": "(1x1),...,(2x2)",
    "mm-patch-merge-type": "spatial_unpad",
}
_SWITCHES = ("--add-qkv-bias", "--untie-embeddings-and-output-weights")


def write_store(prefix: Path) -> list[str]:
    """Write samples of one image (5 views) and 256 text tokens.

    Returns:
        Flags of the model and of packs of one sample each.
    """
    from megatron_llava.data.store_writer import StoreWriter
    from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

    random = np.random.default_rng(0)
    mask = np.zeros(TEXT + 1, dtype=np.uint8)
    mask[-ANSWER:] = 1
    with StoreWriter(prefix, tokenizer_fingerprint="none", conversation_template="none") as writer:
        for _ in range(SAMPLES):
            tokens = random.integers(0, VOCABULARY, TEXT).astype(np.int32)
            writer.add(np.insert(tokens, 1, IMAGE_TOKEN_INDEX), mask, [_png(random)], [IMAGE])
        writer.finish()
    return [*_flags(prefix), "--seq-length=1024", "--packing-window=1"]


def write_mixed_store(prefix: Path) -> None:
    """Write samples of no to two images and 16 to 1,000 text tokens."""
    from megatron_llava.data.store_writer import StoreWriter
    from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

    random = np.random.default_rng(0)
    with StoreWriter(prefix, tokenizer_fingerprint="none", conversation_template="none") as writer:
        for _ in range(SAMPLES):
            images = int(random.integers(0, 3))
            text = int(2 ** random.uniform(4, 10))
            tokens = random.integers(0, VOCABULARY, images + text).astype(np.int32)
            tokens[:images] = IMAGE_TOKEN_INDEX
            mask = np.zeros(len(tokens), dtype=np.uint8)
            mask[-(text // 2) :] = 1
            writer.add(tokens, mask, [_png(random) for _ in range(images)], [IMAGE] * images)
        writer.finish()


def mixed_flags(prefix: Path) -> list[str]:
    """Flags of the model and of packs of 2,048 positions of such a store."""
    return [*_flags(prefix), "--seq-length=2048"]


def _flags(prefix: Path) -> list[str]:
    model = [f"--{name}={value}" for name, value in _MODEL.items()]
    return [*model, *_SWITCHES, f"--data-path={prefix}"]


def _png(random: np.random.Generator) -> bytes:
    pixels = random.integers(0, 256, (*IMAGE[::-1], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()
