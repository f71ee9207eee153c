"""--temporal-encoder-layers: identity at first, within a video only, torch's own encoder."""

import pytest
import torch
from tiny_model import (
    assert_bitwise,
    assert_equal_runs,
    losses_and_gradients,
    mixed_samples,
    pack,
    sum_of_samples,
    tiny_config,
    tiny_model,
    with_video,
)

from megatron_llava.config.training import part_of
from megatron_llava.convert.export_config import FIXED_IN_LLAVA, check_fixed
from megatron_llava.data.sample import Sample
from megatron_llava.models.build import build_llava_model
from megatron_llava.models.temporal_encoder import TemporalEncoder, temporal_encoder_weights
from megatron_llava.observe.parameters import part_parameters

pytestmark = pytest.mark.usefixtures("single_rank")

LAYERS, HIDDEN, HEADS, TOKENS = 2, 32, 4, 4
ON = {"temporal_encoder_layers": LAYERS, "temporal_encoder_max_frames": 5}
WEIGHTS = temporal_encoder_weights(LAYERS)


def samples() -> list[Sample]:
    """Videos of several lengths, one of them between images; images and text alone."""
    return [
        with_video(3, 11),
        *mixed_samples(),
        with_video(5, 12, ((40, 20), (30, 50))),
        with_video(1, 13),
    ]


@pytest.mark.proves("B10")
def test_it_begins_as_the_model_without_it():
    plain, config = tiny_config(), tiny_config(**ON)
    model, other = tiny_model(plain), build_llava_model(config)
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert {name for name in missing if "_extra_state" not in name} == set(WEIGHTS)
    assert not unexpected
    expected = losses_and_gradients(model, pack(plain, samples()))
    losses, gradients = losses_and_gradients(other, pack(config, samples()))
    added = {name: gradients.pop(name) for name in WEIGHTS}
    assert_bitwise((losses, gradients), expected)
    learning = {name for name, gradient in added.items() if gradient.any()}
    begin = ("linear_proj", "linear_fc2", "frame_positions")
    assert learning == {name for name in WEIGHTS if any(word in name for word in begin)}


def test_each_layer_begins_with_weights_of_its_own():
    encoder = build_llava_model(tiny_config(**ON)).temporal_encoder
    first, second = encoder.layer_1, encoder.layer_2
    for name in ("attention.linear_qkv.weight", "mlp.linear_fc1.weight"):
        one, other = first.get_parameter(name), second.get_parameter(name)
        assert one.std().item() == pytest.approx(0.02, rel=0.1)
        assert not torch.equal(one, other)


@pytest.mark.proves("B10")
def test_a_pack_is_its_samples_alone():
    config = tiny_config(**ON)
    model = tiny_model(config)
    found = losses_and_gradients(model, pack(config, samples()))
    assert all(found[1][name].any() for name in WEIGHTS)
    assert_equal_runs(found, sum_of_samples(model, config, samples()))


def torch_encoder(own: TemporalEncoder) -> torch.nn.TransformerEncoder:
    """torch's encoder with the same weights, in float64."""
    layer = torch.nn.TransformerEncoderLayer(
        HIDDEN,
        HEADS,
        4 * HIDDEN,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    judge = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    for number, to in enumerate(judge.layers, 1):
        layer = getattr(own, f"layer_{number}")
        by_head = (HEADS, 3, HIDDEN // HEADS)
        qkv = layer.attention.linear_qkv
        weight = qkv.weight.double().reshape(*by_head, HIDDEN)
        to.self_attn.in_proj_weight.data = weight.transpose(0, 1).reshape(3 * HIDDEN, HIDDEN)
        bias = qkv.bias.double().reshape(by_head)
        to.self_attn.in_proj_bias.data = bias.transpose(0, 1).reshape(3 * HIDDEN)
        for mine, theirs in (
            (layer.attention.norm, to.norm1),
            (layer.attention.linear_proj, to.self_attn.out_proj),
            (layer.norm, to.norm2),
            (layer.mlp.linear_fc1, to.linear1),
            (layer.mlp.linear_fc2, to.linear2),
        ):
            theirs.weight.data, theirs.bias.data = mine.weight.double(), mine.bias.double()
    return judge


@pytest.mark.proves("B10")
def test_it_is_the_encoder_of_torch_over_each_video():
    config = tiny_config(**ON)
    model = tiny_model(config)
    batch = pack(config, samples())
    judge = torch_encoder(model.temporal_encoder)
    positions = model.temporal_encoder.frame_positions.double()
    with torch.no_grad():
        before = model.encode_images(batch.tiles).double()
        found = model.visual_features(batch).double()
        expected = before.clone()
        for first, frames in batch.videos:
            rows = slice(first * TOKENS, (first + frames) * TOKENS)
            placed = before[rows].unflatten(0, (frames, TOKENS)) + positions[:frames, None]
            expected[rows] = judge(placed.flatten(0, 1)[None])[0]
    assert [frames for _, frames in batch.videos] == [3, 5, 1]
    assert (found - expected).abs().max() < 1e-5
    assert (found - before).abs().max() > 0.1
    is_image = (found == before).all(1)
    assert is_image.sum() == TOKENS * (batch.num_views - 9)


@pytest.mark.parametrize("number", [0, 1], ids=["image", "text"])
def test_without_a_video_every_gradient_is_there(number):
    plain, config = tiny_config(), tiny_config(**ON)
    model, sample = tiny_model(config), mixed_samples()[number]
    losses, gradients = losses_and_gradients(model, pack(config, [sample]))
    for name in WEIGHTS:
        assert gradients[name] is not None and not gradients[name].any(), name
    without = build_llava_model(plain)
    without.load_state_dict(
        {name: tensor for name, tensor in model.state_dict().items() if name not in WEIGHTS},
        strict=False,
    )
    assert torch.equal(losses, losses_and_gradients(without, pack(plain, [sample]))[0])


def test_more_frames_than_have_a_position():
    config = tiny_config(**ON)
    with pytest.raises(ValueError, match="video of 6 frames: --temporal-encoder-max-frames is 5"):
        tiny_model(config)(pack(config, [with_video(6, 1)]))


def test_its_parameters_are_the_projectors_part_and_are_counted():
    config = tiny_config(**ON)
    named = {name: p.numel() for name, p in build_llava_model(config).named_parameters()}
    listed = part_parameters(config, layers=2, first=True, last=True)
    assert {p.name: p.numel for p in listed} == named
    assert {part_of(name) for name in WEIGHTS} == {"mm_mlp_adapter"}


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_no_class_of_transformers_computes_it(kind):
    with pytest.raises(ValueError, match="temporal_encoder_layers is 2, which .* cannot compute"):
        check_fixed(FIXED_IN_LLAVA | {"temporal_encoder_layers": 2}, kind)
