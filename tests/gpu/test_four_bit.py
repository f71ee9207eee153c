"""Weights in 4 bits on a GPU; skipped, visibly, where there is none."""

import pytest
import torch

from megatron_llava.ops.four_bit import FourBitWeight, four_bit_bytes, four_bit_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("double_quant", [False, True])
def test_it_computes_as_on_the_cpu(dtype, double_quant):
    pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 256, generator=generator).to(dtype)
    x = torch.randn(5, 2, 256, generator=generator).to(dtype)
    gradient = torch.randn(5, 2, 96, generator=generator).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        held = FourBitWeight(weight.to(device), "nf4", double_quant=double_quant)
        there = x.to(device).requires_grad_()
        output = four_bit_linear(there, held)
        output.backward(gradient.to(device))
        found.append([held.unpacked().cpu(), output.detach().cpu(), there.grad.cpu()])
    for expected, other in zip(*found, strict=True):
        difference = (other.double() - expected.double()).norm() / expected.double().norm()
        assert difference < 1e-2


def test_the_whole_weight_leaves_the_memory():
    pytest.importorskip("bitsandbytes")
    before = torch.cuda.memory_allocated()
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    held = FourBitWeight(weight, "nf4", double_quant=True)
    del weight
    # A caching allocator gives multiples of 512 bytes; the map of 8-bit numbers is not planned.
    kept = torch.cuda.memory_allocated() - before
    assert kept == pytest.approx(four_bit_bytes(4096**2, double_quant=True), rel=0.01)
    assert held.packed.is_cuda
