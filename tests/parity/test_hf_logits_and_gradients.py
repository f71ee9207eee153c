"""What trains is what transformers computes: logits, loss and the gradient of every parameter."""

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import IMAGE_TOKEN_ID, VOCAB_SIZE, tiny_llava_next
from tiny_model import losses_and_gradients, png, relative_difference

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.sample import Sample
from megatron_llava.text.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from megatron_llava.vision.token_layout import number_of_tokens

pytestmark = pytest.mark.usefixtures("single_rank")

KINDS = [("llama", "clip", False), ("qwen2", "siglip", True), ("mistral", "clip", False)]
SIZES = [
    (56, 56),  # one tile
    (112, 112),
    (100, 80),
    (300, 50),  # wide: three tiles, most of them padding
    (33, 200),  # tall
    (640, 480),  # scaled down
    (57, 113),
    (170, 60),
    (20, 15),  # scaled up
    None,  # text only
]
LOGITS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-4


@dataclass
class Pair:
    """One checkpoint as transformers loads it and as we import it."""

    folder: Path
    hf: Any
    ours: Any
    mapping: dict[str, Any]
    passthrough: dict[str, torch.Tensor]
    settings: ImageSettings

    @cached_property
    def processor(self):
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil,
        )

        return LlavaNextImageProcessorPil.from_pretrained(self.folder)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def pair(request, tmp_path_factory, single_rank):
    from transformers import LlavaNextForConditionalGeneration

    from megatron_llava.convert.convert import megatron_state_from_hf
    from megatron_llava.convert.hf_folder import read_mapping
    from megatron_llava.convert.hf_reader import HFReader
    from megatron_llava.convert.places import build_for_compute
    from megatron_llava.convert.root_files import run_config
    from megatron_llava.vision.settings import image_settings

    text, vision, tied = request.param
    folder = tiny_llava_next(tmp_path_factory.mktemp("parity") / "hf", text, vision, tied=tied)
    with HFReader(folder) as reader:
        mapping = read_mapping(folder, reader)
        state, passthrough = megatron_state_from_hf(reader, mapping)
        ours = build_for_compute(mapping, torch.float32)
        ours.load_state_dict(state, strict=True)
    hf = LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    settings = image_settings(run_config(mapping, "model.yaml"))
    return Pair(folder, hf, ours, mapping, passthrough, settings)


def sample_of(size: tuple[int, int] | None, seed: int) -> Sample:
    """11 text tokens, the later ones labels, with an image after the third unless size is None."""
    ids = np.random.default_rng(seed).integers(5, VOCAB_SIZE, 11).astype(np.int32)
    mask = (np.arange(11) > 4).astype(np.uint8)
    sizes = () if size is None else (size,)
    return Sample(
        token_ids=np.insert(ids, [3] * len(sizes), IMAGE_TOKEN_INDEX).astype(np.int32),
        label_mask=np.insert(mask, [3] * len(sizes), 0),
        image_sizes=sizes,
        images=tuple(png(size, seed) for size in sizes),
        source=str(size),
    )


def hf_inputs(pair: Pair, sample: Sample) -> dict[str, torch.Tensor]:
    """The sample for transformers: pixels from its own processor, image tokens expanded, labels."""
    pixels = {}
    counts = np.ones(len(sample.token_ids), dtype=int)
    if sample.images:
        image = Image.open(io.BytesIO(sample.images[0]))
        pixels = dict(pair.processor(images=image, return_tensors="pt"))
        at_image = sample.token_ids == IMAGE_TOKEN_INDEX
        counts[at_image] = number_of_tokens(image.size, pair.settings)
    ids = torch.from_numpy(np.repeat(sample.token_ids, counts)).long()
    mask = torch.from_numpy(np.repeat(sample.label_mask, counts)).bool()
    labels = ids.masked_fill(~mask, IGNORE_INDEX)
    ids = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, IMAGE_TOKEN_ID)
    return {"input_ids": ids[None], "labels": labels[None], **pixels}


def our_batch(pair: Pair, samples: list[Sample]):
    from megatron_llava.data.collate import collate

    return collate(samples, pair.settings).to_torch()


@pytest.mark.proves("B1", "B7")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits(pair, size):
    sample = sample_of(size, seed=7)
    inputs = hf_inputs(pair, sample)
    with torch.no_grad():
        expected = pair.hf(**inputs).logits[0]
        batch = our_batch(pair, [sample])
        found = pair.ours.logits(pair.ours.decode(batch), torch.arange(batch.num_rows))
    assert found.shape == expected.shape
    assert expected.abs().max() > 1
    assert float((found - expected).abs().max()) < LOGITS_TOLERANCE


def test_only_answers_have_a_loss_and_the_last_image_row_predicts_one(pair):
    """The first answer stands right behind the image; a question and a second answer follow."""
    sample = sample_of((60, 130), seed=3)
    image = int(np.flatnonzero(sample.token_ids == IMAGE_TOKEN_INDEX)[0])
    sample.label_mask[:] = 0
    sample.label_mask[[image + 1, image + 2, image + 6, image + 7]] = 1
    inputs = hf_inputs(pair, sample)
    with torch.no_grad():
        logits, labels = pair.hf(**inputs).logits[0], inputs["labels"][0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="none")
        batch = our_batch(pair, [sample])
        found = torch.zeros(len(labels) - 1).index_put((batch.loss_rows,), pair.ours(batch))
    carries = labels[1:] != IGNORE_INDEX
    last_image_row = int(torch.nonzero(inputs["input_ids"][0] == IMAGE_TOKEN_ID)[-1])
    assert carries.sum() == 4 and carries[last_image_row]
    assert not found[~carries].any() and found[carries].all()
    assert float((found - expected).abs().max()) < LOGITS_TOLERANCE


def hf_loss_and_gradients(pair: Pair, samples: list[Sample]) -> tuple[float, dict[str, Any]]:
    """Summed loss over all labels, sample by sample, and its gradient by hub-layout name."""
    from megatron_llava.convert.hf_reader import detect_layout, hub_name

    pair.hf.zero_grad(set_to_none=True)
    total = 0.0
    for sample in samples:
        inputs = hf_inputs(pair, sample)
        labels = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        loss = pair.hf(**inputs).loss * labels
        loss.backward()
        total += loss.item()
    parameters = dict(pair.hf.named_parameters())
    layout = detect_layout(parameters)
    return total, {hub_name(name, layout): p.grad for name, p in parameters.items()}


def is_key_bias_of_tower(name: str) -> bool:
    """Its true gradient is zero: what it adds to the scores of a row is the same for every key."""
    return name.startswith("vision_tower.") and name.endswith("k_proj.bias")


@pytest.mark.proves("B1", "B7", "D11")
def test_loss_and_every_gradient(pair):
    """All samples in one pack here, one after the other there."""
    from megatron_llava.convert.convert import hf_state_from_megatron

    samples = [sample_of(size, seed) for seed, size in enumerate(SIZES)]
    expected_loss, expected = hf_loss_and_gradients(pair, samples)
    losses, gradients = losses_and_gradients(pair.ours, our_batch(pair, samples))
    assert abs(float(losses.sum()) / expected_loss - 1) < 1e-5

    assert all(gradient is not None for gradient in gradients.values())
    found = dict(hf_state_from_megatron(gradients, pair.mapping, pair.passthrough))
    unused = {name for name, gradient in expected.items() if gradient is None}
    assert unused == set(pair.passthrough)
    used = expected.keys() - unused
    assert used == found.keys() - unused
    assert "image_newline" in used and "multi_modal_projector.linear_1.weight" in used
    for name in sorted(used):
        if is_key_bias_of_tower(name):
            query = expected[name.replace("k_proj", "q_proj")].norm()
            assert found[name].norm() < 1e-4 * query and expected[name].norm() < 1e-4 * query
        else:
            assert relative_difference(found[name], expected[name]) < GRADIENT_TOLERANCE, name
