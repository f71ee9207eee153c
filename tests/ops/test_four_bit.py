"""Weights in 4 bits: the levels of NF4, bitsandbytes' own products, and what is kept."""

import sys

import pytest
import torch

from megatron_llava.config.lora import LoraConfig
from megatron_llava.ops.four_bit import (
    FourBitWeight,
    check_bitsandbytes,
    four_bit_bytes,
    four_bit_linear,
)

# The 16 levels of NF4, from the appendix of the QLoRA paper (arXiv:2305.14314).
NF4 = (
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    + [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    + [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)


def weight(outputs=24, inputs=128, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs, inputs, generator=generator).to(dtype)


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def test_every_number_becomes_the_nearest_level_of_its_block(bitsandbytes):
    whole = weight()
    found = FourBitWeight(whole, "nf4", double_quant=False).unpacked()
    blocks = whole.view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = (blocks / largest).unsqueeze(-1).sub(levels).abs().argmin(-1)
    assert torch.allclose(found, (levels[nearest] * largest).view_as(whole), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_products_and_gradients_are_those_of_bitsandbytes(
    bitsandbytes, quant_type, double_quant, dtype
):
    whole = weight(dtype=dtype)
    theirs = bitsandbytes.nn.Linear4bit(
        128,
        24,
        bias=False,
        compute_dtype=dtype,
        compress_statistics=double_quant,
        quant_type=quant_type,
    )
    theirs.weight = bitsandbytes.nn.Params4bit(
        whole, False, compress_statistics=double_quant, quant_type=quant_type
    )
    theirs = theirs.to("cpu")
    x = torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = four_bit_linear(ours_x, FourBitWeight(whole, quant_type, double_quant=double_quant))
    expected = theirs(their_x)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    found.backward(gradient)
    expected.backward(gradient)
    assert found.dtype == dtype
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours_x.grad, their_x.grad, rtol=1e-5, atol=1e-5)
    assert (found.float() - (x @ whole.t()).float()).abs().max() > 0.1, "rounding is seen"


def test_nothing_of_the_size_of_the_weight_or_the_input_is_kept(bitsandbytes):
    held = FourBitWeight(weight(), "nf4", double_quant=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda held: held):
        four_bit_linear(torch.randn(5, 128, requires_grad=True), held)
    assert kept == []
    assert held.packed.numel() == 24 * 128 // 2


@pytest.mark.parametrize("shape", [(24, 128), (7, 36), (1, 64 * 256 + 64)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_the_bytes_that_are_planned(bitsandbytes, shape, double_quant):
    held = FourBitWeight(weight(*shape), "nf4", double_quant=double_quant)
    found = sum(tensor.numel() * tensor.element_size() for tensor in held.tensors())
    assert found == four_bit_bytes(shape[0] * shape[1], double_quant=double_quant)


def test_a_missing_package_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_bitsandbytes(LoraConfig(lora_rank=4))
    with pytest.raises(ValueError) as caught:
        check_bitsandbytes(LoraConfig(lora_rank=4, load_in_4bit=True))
    said = str(caught.value)
    assert "--load-in-4bit" in said and "pip install 'megatron-llava[bitsandbytes]'" in said
    assert "\n" not in said
