"""A video through the whole model: logits, loss and gradients are those of transformers."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import IMAGE_TOKEN_ID, VOCAB_SIZE
from tiny_llava import tiny_llava
from tiny_model import losses_and_gradients, relative_difference

from megatron_llava.data.sample import Sample
from megatron_llava.data.stored_video import pack_frames
from megatron_llava.text.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from megatron_llava.vision.tiles import normalize_tiles

pytestmark = pytest.mark.usefixtures("single_rank")
VIDEO_TOKEN_ID = 5
FRAMES = 3


@pytest.fixture(scope="module", params=["siglip", "clip-336"])
def pair(request, tmp_path_factory, single_rank):
    from transformers import LlavaOnevisionForConditionalGeneration

    from megatron_llava.convert.convert import megatron_state_from_hf
    from megatron_llava.convert.hf_folder import read_mapping
    from megatron_llava.convert.hf_reader import HFReader
    from megatron_llava.convert.places import build_for_compute
    from megatron_llava.convert.root_files import run_config
    from megatron_llava.vision.settings import image_settings

    folder = tmp_path_factory.mktemp("video") / "hf"
    tiny_llava(folder, "llava_onevision", "qwen2", request.param)
    with HFReader(folder) as reader:
        mapping = read_mapping(folder, reader)
        state, passthrough = megatron_state_from_hf(reader, mapping)
        ours = build_for_compute(mapping, torch.float32)
        ours.load_state_dict(state, strict=True)
    hf = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    return hf, ours, image_settings(run_config(mapping, "model.yaml")), mapping, passthrough


def picture(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def video_sample(seed: int = 3) -> Sample:
    """Text with a video of three frames after the third token; the last six are trained."""
    ids = np.random.default_rng(seed).integers(VIDEO_TOKEN_ID + 1, VOCAB_SIZE, 11)
    frames = [picture(seed + number, (70, 50)) for number in range(FRAMES)]
    return Sample(
        token_ids=np.insert(ids, 3, IMAGE_TOKEN_INDEX).astype(np.int32),
        label_mask=(np.arange(12) > 5).astype(np.uint8),
        image_sizes=((FRAMES, 0),),
        images=(pack_frames(frames),),
        source="video",
    )


def hf_inputs(sample: Sample, settings) -> dict[str, torch.Tensor]:
    from megatron_llava.data.pack_pixels import views_of

    views = torch.from_numpy(views_of(sample, 0, settings))
    pixels = normalize_tiles(views, settings.image_mean, settings.image_std, torch.float32)
    tokens = FRAMES * ((settings.patches_per_side + 1) // 2) ** 2 + 1
    counts = np.where(sample.token_ids == IMAGE_TOKEN_INDEX, tokens, 1)
    ids = torch.from_numpy(np.repeat(sample.token_ids, counts)).long()
    mask = torch.from_numpy(np.repeat(sample.label_mask, counts)).bool()
    labels = ids.masked_fill(~mask, IGNORE_INDEX)
    ids = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, VIDEO_TOKEN_ID)
    assert not (ids == IMAGE_TOKEN_ID).any()
    return {"input_ids": ids[None], "labels": labels[None], "pixel_values_videos": pixels[None]}


def test_logits_loss_and_gradients(pair):
    from megatron_llava.convert.convert import hf_state_from_megatron
    from megatron_llava.convert.hf_reader import detect_layout, hub_name
    from megatron_llava.data.collate import collate

    hf, ours, settings, mapping, passthrough = pair
    sample = video_sample()
    inputs = hf_inputs(sample, settings)
    hf.zero_grad(set_to_none=True)
    theirs = hf(**inputs)
    batch = collate([sample], settings).to_torch()
    with torch.no_grad():
        found = ours.logits(ours.decode(batch), torch.arange(batch.num_rows))
    assert found.shape == theirs.logits[0].shape and theirs.logits.abs().max() > 1
    assert float((found - theirs.logits[0].detach()).abs().max()) < 1e-4

    labels = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
    (theirs.loss * labels).backward()
    losses, gradients = losses_and_gradients(ours, batch)
    assert abs(float(losses.sum()) / (theirs.loss.item() * labels) - 1) < 1e-5
    found = dict(hf_state_from_megatron(gradients, mapping, passthrough))
    parameters = dict(hf.named_parameters())
    layout = detect_layout(parameters)
    for name, parameter in parameters.items():
        name = hub_name(name, layout)
        zero = name.startswith("vision_tower.") and name.endswith("k_proj.bias")
        if parameter.grad is not None and not zero:
            assert relative_difference(found[name], parameter.grad) < 1e-4, name


def test_a_video_in_a_pack_with_an_image(pair):
    """Packed, each is what it is alone."""
    from megatron_llava.data.collate import collate

    _, ours, settings, _, _ = pair
    video = video_sample(9)
    image = replace(video, image_sizes=((90, 60),), images=(picture(1, (90, 60)),))
    alone = []
    for sample in (video, image):
        batch = collate([sample], settings).to_torch()
        with torch.no_grad():
            alone.append(ours.logits(ours.decode(batch), torch.arange(batch.num_rows)))
    batch = collate([video, image], settings).to_torch()
    with torch.no_grad():
        packed = ours.logits(ours.decode(batch), torch.arange(batch.num_rows))
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-5)
