"""A frozen base in 4 bits on one rank: what it computes, what it keeps, what it leaves alone."""

import weakref

import pytest
import torch
from tiny_model import losses_and_gradients, mixed_samples, pack, tiny_config, tiny_model

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("single_rank")

FULL = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
PARTS = ("mm_mlp_adapter", "mm_language_model")
LORA = {"lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def base(single_rank):
    return tiny_model(tiny_config())


def quantized(base, **changes):
    """A model in 4 bits beside adapters that matter, its weights those of another one."""
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.peft.four_bit_linears import quantize_base
    from megatron_llava.training.freeze import freeze_parts

    config = tiny_config(**LORA, load_in_4bit=True, **changes)
    model = build_llava_model(config)
    model.load_state_dict(base.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            parameter.data.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    freeze_parts(model, PARTS, adapts=True)
    quantize_base([model], config.lora)
    return model


def four_bit_linears(model):
    from megatron_llava.peft.four_bit_linears import FourBitLinear

    return {n: m for n, m in model.named_modules() if isinstance(m, FourBitLinear)}


def test_it_computes_with_the_rounded_weights(base):
    """Losses and every gradient are those of a model that has them in full."""
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.training.freeze import freeze_parts

    model, batch = quantized(base), pack(tiny_config(), mixed_samples())
    rounded = build_llava_model(tiny_config(**LORA))
    state = model.state_dict() | {
        f"{name}.weight": linear.four_bit.unpacked()
        for name, linear in four_bit_linears(model).items()
    }
    rounded.load_state_dict(state)
    freeze_parts(rounded, PARTS, adapts=True)
    losses, found = losses_and_gradients(model, batch)
    expected_losses, expected = losses_and_gradients(rounded, batch)
    assert torch.allclose(losses, expected_losses, rtol=1e-5, atol=1e-6)
    learning = {name for name, gradient in expected.items() if gradient is not None}
    assert {name for name, gradient in found.items() if gradient is not None} == learning
    for name in learning:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6), name
    assert (losses - base(batch)).abs().max() > 1e-3, "rounding and adapters are seen"


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "down_proj")])
def test_linears_without_an_adapter_are_in_4_bits_too(base, targets):
    linears = four_bit_linears(quantized(base, lora_target_modules=targets))
    assert len(linears) == 4 * tiny_config().language.num_layers
    assert all(name.startswith("language_model.decoder.layers.") for name in linears)


@pytest.mark.parametrize("recompute", [FULL, {"recompute_activations": True}])
def test_recomputation_changes_no_gradient(base, recompute):
    batch = pack(tiny_config(), mixed_samples())
    losses, expected = losses_and_gradients(quantized(base), batch)
    found_losses, found = losses_and_gradients(quantized(base, **recompute), batch)
    assert torch.equal(losses, found_losses)
    for name, gradient in expected.items():
        assert gradient is None or torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name


def test_the_whole_weight_is_gone(base):
    from megatron_llava.config.lora import LoraConfig
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.peft.four_bit_linears import quantize_base
    from megatron_llava.training.freeze import freeze_parts

    config = tiny_config(**LORA, load_in_4bit=True)
    model = build_llava_model(config)
    freeze_parts(model, PARTS, adapts=True)
    linears = four_bit_linears(model)
    before = [weakref.ref(linear.weight) for linear in linears.values()]
    quantize_base([model], LoraConfig(**LORA))
    assert all(reference() is not None for reference in before), "not asked for"
    quantize_base([model], config.lora)
    assert all(reference() is None for reference in before)
    assert not {f"{name}.weight" for name in linears} & set(model.state_dict())
    assert all(linear.weight.dtype == torch.uint8 for linear in linears.values())
