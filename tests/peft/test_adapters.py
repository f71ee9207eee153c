"""Adapters on one rank: what they add, what learns beside them, and what they leave alone."""

import math

import pytest
import torch
from tiny_model import losses_and_gradients, mixed_samples, pack, tiny_config, tiny_model

from megatron_llava.config.lora import TARGET_MODULES
from megatron_llava.convert.rules import GateUp, GroupedQKV

pytestmark = pytest.mark.usefixtures("single_rank")

FULL = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


def lora_config(**changes):
    return tiny_config(**{"lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, **changes})


def adapters(model):
    return {name: p for name, p in model.named_parameters() if ".lora." in name}


@pytest.fixture(scope="module")
def base(single_rank):
    return tiny_model(tiny_config())


@pytest.fixture(scope="module")
def batch():
    return pack(tiny_config(), mixed_samples())


def beside(base, **changes):
    """A model with adapters as they start, and the weights of another one."""
    from megatron_llava.models.build import build_llava_model

    model = build_llava_model(lora_config(**changes))
    missing, surplus = model.load_state_dict(base.state_dict(), strict=False)
    assert set(missing) == set(adapters(model)) and not surplus
    return model


def redraw(model):
    """Give every factor, B as well, numbers that matter."""
    generator = torch.Generator().manual_seed(5)
    for parameter in adapters(model).values():
        parameter.data.copy_(0.15 * torch.randn(parameter.shape, generator=generator))


def gradients(model, batch, rows):
    """Losses and gradients of the adapters and maybe the image rows, from one random state."""
    from megatron_llava.parallel.groups import set_seed
    from megatron_llava.training.freeze import freeze_parts

    freeze_parts(model, ("mm_language_model",), adapts=True)
    model.image_newline.requires_grad_(rows)
    set_seed(3)
    return losses_and_gradients(model.train(), batch)


def test_adapters_change_nothing_at_first(base, batch):
    from megatron_llava.parallel.groups import set_seed

    model = beside(base, lora_dropout=0.3)
    set_seed(3)
    assert torch.equal(model.train()(batch), base(batch))


@pytest.mark.proves("D6")
def test_merged_equals_unmerged(base, batch):
    from megatron_llava.peft.layers import adapted_linears

    model, merged = beside(base), beside(base)
    redraw(model)
    for linear, other in zip(adapted_linears(model), adapted_linears(merged), strict=True):
        other.weight.data += linear.lora.delta()
    found, expected = (m.decode(batch).detach() for m in (model, merged))
    assert (found - expected).abs().max() <= 1e-5
    assert (found - base.decode(batch)).abs().max() > 0.1, "the adapters matter"


@pytest.mark.proves("D6")
def test_no_adapter_leaks_out_of_the_decoder(base):
    from megatron_llava.peft.layers import adapted_linears

    model = beside(base)
    assert all(name.startswith("language_model.decoder.layers.") for name in adapters(model))
    assert len(list(adapted_linears(model))) == 4 * tiny_config().language.num_layers
    assert not list(adapted_linears(model.vision_model))


@pytest.mark.parametrize("target", TARGET_MODULES)
def test_a_target_alone_adapts_its_own_outputs(base, batch, target):
    """Of a fused linear only the rows of the target, as conversion orders them, get a product."""
    from megatron_llava.config.lora import PARTS
    from megatron_llava.peft.layers import adapted_linears

    model = beside(base, lora_target_modules=(target,))
    redraw(model)
    language = tiny_config().language
    groups = language.num_query_groups
    channels, ffn = language.head_width, language.ffn_hidden_size
    qkv = GroupedQKV(groups, language.num_attention_heads // groups, channels)
    rows = dict.fromkeys(TARGET_MODULES, language.hidden_size)
    rows |= dict.fromkeys(("k_proj", "v_proj"), groups * channels)
    rows |= dict.fromkeys(("gate_proj", "up_proj"), ffn)
    linears = list(adapted_linears(model))
    assert len(linears) == language.num_layers
    for linear in linears:
        parts = PARTS[linear.name]
        marked = [torch.full((rows[part], 1), float(part == target)) for part in parts]
        kind = {"linear_qkv": qkv, "linear_fc1": GateUp()}.get(linear.name)
        expected = kind.to_megatron(marked) if kind else marked[0]
        assert tuple(linear.lora.a.shape[:2]) == (1, 4)
        assert torch.equal(linear.lora.delta().abs().sum(1) > 0, expected[:, 0] > 0)


def test_a_is_drawn_as_peft_draws_it_and_b_is_zero(base):
    model = beside(base)
    drawn = [(name, p) for name, p in adapters(model).items() if name.endswith(".a")]
    seen = set()
    for name, parameter in drawn:
        bound = 1 / math.sqrt(parameter.shape[-1])
        for part in parameter.detach():
            assert 0.9 * bound < part.abs().max() <= bound, name
            assert float(part.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
            seen.add(float(part[0, 0]))
    assert len(seen) == len(TARGET_MODULES) * 2, "every part of every layer has its own"
    assert not any(p.any() for name, p in adapters(model).items() if name.endswith(".b"))
    again = adapters(beside(base))
    assert all(torch.equal(again[name], p) for name, p in drawn)
    other = adapters(beside(base, seed=7))
    assert not any(torch.equal(other[name], p) for name, p in drawn)


@pytest.mark.parametrize("recompute", [FULL, {"recompute_activations": True}])
@pytest.mark.parametrize("rows", [True, False])
def test_recomputation_changes_no_gradient(base, batch, recompute, rows):
    """With the masks of the first forward, also where nothing before the decoder learns."""
    plain, again = beside(base, lora_dropout=0.3), beside(base, lora_dropout=0.3, **recompute)
    redraw(plain)
    redraw(again)
    losses, expected = gradients(plain, batch, rows)
    found_losses, found = gradients(again, batch, rows)
    assert torch.equal(losses, found_losses)
    assert all(expected[name].any() for name in adapters(plain))
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
        else:
            assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name


def test_dropout_is_drawn_while_training_only(base, batch, caplog):
    from megatron_llava.parallel.groups import set_seed

    model = beside(base, lora_dropout=0.3)
    redraw(model)
    set_seed(3)
    first, second = model.train()(batch), model(batch)
    assert not torch.equal(first, second)
    first, second = model.eval()(batch), model(batch)
    assert torch.equal(first, second)
    assert not caplog.records, "core's remarks about the CPU's random numbers"
