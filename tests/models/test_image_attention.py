"""--cross-image-attention: identity at first, within a sample only, torch's own attention."""

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
)

from megatron_llava.config.training import part_of
from megatron_llava.convert.export_config import FIXED_IN_LLAVA, check_fixed
from megatron_llava.models.build import build_llava_model
from megatron_llava.models.feature_attention import CROSS_IMAGE_WEIGHTS
from megatron_llava.observe.parameters import part_parameters

pytestmark = pytest.mark.usefixtures("single_rank")

ON = {"cross_image_attention": True}


@pytest.mark.proves("B9")
def test_it_begins_as_the_model_without_it():
    plain, config, samples = tiny_config(), tiny_config(**ON), mixed_samples()
    model, other = tiny_model(plain), build_llava_model(config)
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert {name for name in missing if "_extra_state" not in name} == set(CROSS_IMAGE_WEIGHTS)
    assert not unexpected
    expected = losses_and_gradients(model, pack(plain, samples))
    losses, gradients = losses_and_gradients(other, pack(config, samples))
    added = {name: gradients.pop(name) for name in CROSS_IMAGE_WEIGHTS}
    assert_bitwise((losses, gradients), expected)
    learning = {name for name, gradient in added.items() if gradient.any()}
    assert learning == {name for name in CROSS_IMAGE_WEIGHTS if "linear_proj" in name}


def test_a_pack_is_its_samples_alone():
    config, samples = tiny_config(**ON), mixed_samples()
    model = tiny_model(config)
    found = losses_and_gradients(model, pack(config, samples))
    assert all(found[1][name].any() for name in CROSS_IMAGE_WEIGHTS)
    assert_equal_runs(found, sum_of_samples(model, config, samples))


@pytest.mark.proves("B9")
def test_it_is_the_attention_of_torch_over_each_sample():
    config = tiny_config(**ON)
    model, samples = tiny_model(config), mixed_samples()
    own = model.cross_image_attention
    hidden, heads = 32, 4
    judge = torch.nn.MultiheadAttention(hidden, heads, batch_first=True, dtype=torch.float64)
    by_head = own.linear_qkv.weight.double().reshape(heads, 3, hidden // heads, hidden)
    judge.in_proj_weight.data = by_head.transpose(0, 1).reshape(3 * hidden, hidden)
    bias = own.linear_qkv.bias.double().reshape(heads, 3, hidden // heads)
    judge.in_proj_bias.data = bias.transpose(0, 1).reshape(3 * hidden)
    judge.out_proj.weight.data = own.linear_proj.weight.double()
    judge.out_proj.bias.data = own.linear_proj.bias.double()
    batch = pack(config, samples)
    with torch.no_grad():
        before = model.encode_images(batch.tiles).double()
        found = model.visual_features(batch).double()
        parts = []
        for part in before.split([4 * views for views in batch.sample_views if views]):
            normed = torch.nn.functional.layer_norm(
                part, (hidden,), own.norm.weight.double(), own.norm.bias.double()
            )
            parts.append(part + judge(normed[None], normed[None], normed[None])[0][0])
    assert [views > 0 for views in batch.sample_views] == [bool(s.images) for s in samples]
    assert (found - torch.cat(parts)).abs().max() < 1e-5
    assert (found - before).abs().max() > 0.1


def test_without_an_image_every_gradient_is_there():
    config = tiny_config(**ON)
    batch = pack(config, [mixed_samples()[1]])
    _, gradients = losses_and_gradients(tiny_model(config), batch)
    for name in CROSS_IMAGE_WEIGHTS:
        assert gradients[name] is not None and not gradients[name].any(), name


def test_its_parameters_are_the_projectors_part_and_are_counted():
    config = tiny_config(**ON)
    named = {name: p.numel() for name, p in build_llava_model(config).named_parameters()}
    listed = part_parameters(config, layers=2, first=True, last=True)
    assert {p.name: p.numel for p in listed} == named
    assert {part_of(name) for name in CROSS_IMAGE_WEIGHTS} == {"mm_mlp_adapter"}


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_no_class_of_transformers_computes_it(kind):
    with pytest.raises(ValueError, match="cross_image_attention is True, which .* cannot compute"):
        check_fixed(FIXED_IN_LLAVA | {"cross_image_attention": True}, kind)
