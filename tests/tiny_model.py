"""Tiny models in the process of the tests, samples for them, their losses and gradients."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from megatron_llava.config.run import RunConfig
from megatron_llava.data.collate import collate
from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.data.sample import Sample
from megatron_llava.data.stored_video import pack_frames
from megatron_llava.models.build import build_llava_model
from megatron_llava.models.llava import LlavaModel
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.settings import image_settings

VOCAB_SIZE = 150
TILE, PATCH = 28, 14
TOLERANCE = 1e-5

_FIELDS: dict[str, Any] = {
    "device": "cpu",
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 56,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "max_position_embeddings": 512,
    "vocab_size": VOCAB_SIZE,
    "norm_epsilon": 1e-6,
    "rotary_base": 1e4,
    "add_qkv_bias": True,
    "untie_embeddings_and_output_weights": True,
    "vision_model_type": "clip",
    "vision_num_layers": 2,
    "mm_vision_select_layer": -1,
    "vision_hidden_size": 24,
    "vision_ffn_hidden_size": 40,
    "vision_num_attention_heads": 2,
    "vision_image_size": TILE,
    "vision_patch_size": PATCH,
    "vision_norm_epsilon": 1e-5,
    "vision_hidden_act": "quick_gelu",
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(3x3)",
    "mm_patch_merge_type": "spatial_unpad",
}


def tiny_config(**changes: Any) -> RunConfig:
    """Grouped-query Qwen2 and a CLIP tower of 4 patches per view, with the given changes."""
    return RunConfig().with_values({**_FIELDS, **changes}, "flag")


def tiny_model(config: RunConfig, seed: int = 0) -> LlavaModel:
    """The model of ``config`` with every parameter redrawn, norms and biases included.

    Values depend on the seed and the name only: models that differ in padding, recomputation or
    dtype start from the same numbers. Rows that pad the vocabulary are drawn as well.
    """
    model = build_llava_model(config)
    vocabulary = config.language.vocab_size
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        is_vocabulary = "word_embeddings" in name or "output_layer" in name
        rows = vocabulary if is_vocabulary else parameter.shape[0]
        noise = torch.randn(rows, *parameter.shape[1:], generator=generator)
        if is_vocabulary:
            padding = torch.randn(
                parameter.shape[0] - rows, parameter.shape[1], generator=generator
            )
            noise = torch.cat((noise, padding))
        is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
        noise = 1 + 0.2 * noise if is_norm_weight else 0.15 * noise
        parameter.data.copy_(noise)
    return model


def tiny_sample(
    sizes: Sequence[tuple[int, int]], tokens: int, seed: int, vocab_size: int = VOCAB_SIZE
) -> Sample:
    """``tokens`` random text tokens, half of them labels, with images of ``sizes`` among them."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, vocab_size, tokens).astype(np.int32)
    mask = (random.random(tokens) < 0.5).astype(np.uint8)
    mask[-1] = 1
    places = np.sort(random.integers(0, tokens, len(sizes)))
    return Sample(
        token_ids=np.insert(ids, places, IMAGE_TOKEN_INDEX).astype(np.int32),
        label_mask=np.insert(mask, places, 0),
        image_sizes=tuple(sizes),
        images=tuple(png(size, seed + number) for number, size in enumerate(sizes)),
        source=f"sample {seed}",
    )


def with_video(frames: int, seed: int, images: tuple[tuple[int, int], ...] = ()) -> Sample:
    """A video among text, perhaps between images."""
    sample = tiny_sample([*images[:1], (28, 28), *images[1:]], 8, seed)
    video = pack_frames([png((40, 30), 100 * seed + number) for number in range(frames)])
    place = len(images[:1])
    sizes, stored = list(sample.image_sizes), list(sample.images)
    sizes[place], stored[place] = (frames, 0), video
    return replace(sample, image_sizes=tuple(sizes), images=tuple(stored))


def png(size: tuple[int, int], seed: int) -> bytes:
    """Random pixels of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def mixed_samples() -> list[Sample]:
    """Bilinear, unpadded, single-tile, text-only, multi-image; short and long."""
    return [
        tiny_sample([(90, 80)], 9, 1),
        tiny_sample([], 12, 2),
        tiny_sample([(28, 28)], 5, 3),
        tiny_sample([(40, 20), (15, 60), (30, 30)], 7, 4),
        tiny_sample([(25, 70)], 3, 5),
        tiny_sample([], 2, 6),
    ]


def pack(config: RunConfig, samples: Sequence[Sample], **padding: int) -> TensorBatch:
    """The samples as one batch."""
    return collate(samples, image_settings(config), **padding).to_torch()


def losses_and_gradients(
    model: LlavaModel, batch: TensorBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Per-token losses [L], and the gradient of their sum by parameter name."""
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    losses.sum().backward()
    return losses.detach(), {n: p.grad for n, p in model.named_parameters()}


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    norm = expected.double().norm()
    assert norm > 0, "nothing to compare with"
    return float((found.double() - expected.double()).norm() / norm)


def sum_of_samples(
    model: LlavaModel, config: RunConfig, samples: Sequence[Sample]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of all samples one behind the other, and the sum of their gradients."""
    runs = [losses_and_gradients(model, pack(config, [sample])) for sample in samples]
    names = runs[0][1]
    return torch.cat([losses for losses, _ in runs]), {
        name: torch.stack([gradients[name] for _, gradients in runs]).sum(0) for name in names
    }


def assert_equal_runs(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Losses and gradients are near."""
    assert found[0].shape == expected[0].shape
    assert relative_difference(found[0], expected[0]) < tolerance
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert relative_difference(found[1][name], gradient) < tolerance, name


def assert_bitwise(found: Any, expected: Any) -> None:
    """Losses and gradients are the same."""
    assert torch.equal(found[0], expected[0])
    for name, gradient in expected[1].items():
        assert gradient is not None and torch.equal(found[1][name], gradient), name
