"""Rounding against a table of all FP8 numbers, products and gradients against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_llava.ops.fp8 import (
    CurrentScaling,
    Fp8Recipe,
    fp8_linear,
    largest_magnitude,
    quantize,
    scale_of,
    scaled_product,
)

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# mantissa bits, exponent bias, largest number
FORMATS = {E4M3: (3, 7, 448.0), E5M2: (2, 15, 57344.0)}
HALF_STEP = {E4M3: 2.0**-4, E5M2: 2.0**-3}


def all_numbers(dtype):
    """Every positive finite number of a format and zero, by its definition, ascending."""
    bits, bias, largest = FORMATS[dtype]
    numbers = [m * 2.0 ** (1 - bias - bits) for m in range(2**bits)]
    for exponent in range(1, 2 ** (7 - bits)):
        numbers += [(1 + m / 2**bits) * 2.0 ** (exponent - bias) for m in range(2**bits)]
    return np.array([n for n in numbers if n <= largest])


def nearest(values, dtype):
    """The nearest number of the format, of two equally near ones the even one; the ends hold."""
    table = all_numbers(dtype)
    distance = np.abs(np.abs(values)[:, None] - table)
    best = distance.argmin(1)
    next_one = np.minimum(best + 1, len(table) - 1)
    rows = np.arange(len(values))
    tie = (distance[rows, next_one] == distance[rows, best]) & (best % 2 == 1)
    return np.sign(values) * table[np.where(tie, next_one, best)]


@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    scale=st.sampled_from([1.0, 0.37, 2.0**-20, 1.5e3]),
)
def test_rounding_is_to_the_nearest_number_of_the_format(dtype, values, scale):
    x = torch.tensor(values)
    found = quantize(x, torch.tensor(scale), dtype).double().numpy()
    scaled = (x.numpy() * np.float32(scale)).astype(np.float64)
    np.testing.assert_array_equal(np.abs(found), np.abs(nearest(scaled, dtype)))
    assert (np.sign(found) * np.sign(scaled) >= 0).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_is_torchs_cast_within_the_range_and_ends_there(dtype):
    torch.manual_seed(0)
    largest = FORMATS[dtype][2]
    x = torch.randn(500) * largest / 5
    x = x.clamp(-largest, largest)
    one = torch.ones(())
    assert torch.equal(quantize(x, one, dtype).float(), x.to(dtype).float())
    ends = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    found = quantize(ends, one, dtype).float()
    assert found[:4].tolist() == [largest, -largest, largest, -largest] and found[4].isnan()


def test_the_amax_passes_over_numbers_that_are_none():
    assert largest_magnitude(torch.tensor([1.0, -3.0, torch.nan], dtype=torch.bfloat16)) == 3
    assert largest_magnitude(torch.tensor([-torch.inf, 2.0])) == torch.inf


@pytest.mark.parametrize(
    ("amax", "margin", "expected"),
    [
        (2.0, 0, 224.0),
        (2.0, 3, 28.0),
        (0.0, 0, 5.0),
        (float("inf"), 0, 5.0),
        (1e-38, 0, torch.finfo(torch.float32).max),
    ],
)
def test_scales(amax, margin, expected):
    found = scale_of(torch.tensor(amax), torch.tensor(5.0), E4M3, margin)
    assert found.item() == expected


@pytest.mark.parametrize("a_dtype", FORMATS)
@pytest.mark.parametrize("b_dtype", FORMATS)
def test_products_are_of_the_rounded_operands(a_dtype, b_dtype):
    """Exact where the sum is: few values, which float32 adds without rounding."""
    torch.manual_seed(0)
    a = torch.randint(-8, 9, (5, 9)).float().to(a_dtype)
    b = torch.randint(-8, 9, (7, 9)).float().to(b_dtype)
    found = scaled_product(a, b, torch.tensor(0.5), torch.tensor(4.0), torch.float32)
    assert torch.equal(found.double(), 2 * a.double() @ b.double().T)


@pytest.fixture
def operands():
    torch.manual_seed(0)
    x = torch.randn(48, 32, requires_grad=True)
    weight = (0.1 * torch.randn(24, 32)).requires_grad_()
    return x, weight, 1e-4 * torch.randn(48, 24)


def rounded(x, dtype):
    """A tensor as its FP8 numbers stand for it, float64."""
    scale = np.float32(FORMATS[dtype][2]) / np.float32(x.abs().max().item())
    scaled = (x.detach().numpy() * scale).astype(np.float64).ravel()
    inverse = np.float64(np.float32(1) / scale)
    return torch.from_numpy(nearest(scaled, dtype) * inverse).view(x.shape)


@pytest.mark.parametrize("format", ["hybrid", "e4m3"])
def test_values_and_gradients_are_products_of_the_rounded_operands(operands, format):
    x, weight, gradient = operands
    recipe = Fp8Recipe(format=format, scaling="tensorwise")
    assert recipe.gradient_dtype == (E5M2 if format == "hybrid" else E4M3)
    y = fp8_linear(x, weight, CurrentScaling(recipe))
    y.backward(gradient)
    x8, w8 = rounded(x, E4M3), rounded(weight, E4M3)
    g8 = rounded(gradient, recipe.gradient_dtype)
    for found, expected in ((y, x8 @ w8.T), (x.grad, g8 @ w8), (weight.grad, g8.T @ x8)):
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-6


def test_the_error_is_that_of_the_formats(operands):
    """Each operand is off by at most half a step of its format, relative to the row sums."""
    x, weight, gradient = operands
    y = fp8_linear(x, weight, CurrentScaling(Fp8Recipe(scaling="tensorwise")))
    y.backward(gradient)
    x, w, g = x.detach().double(), weight.detach().double(), gradient.double()
    forward, mixed = 2 * HALF_STEP[E4M3], HALF_STEP[E4M3] + HALF_STEP[E5M2]
    for found, a, b, bound in (
        (y, x, w.T, forward),
        (operands[0].grad, g, w, mixed),
        (weight.grad, g.T, x, mixed),
    ):
        error = (found.double() - a @ b).abs()
        # Products of two errors and numbers below the smallest normal one: a little more.
        assert (error <= 1.2 * bound * (a.abs() @ b.abs())).all()
        assert error.max() > 0


def test_what_needs_no_gradient_gets_none(operands):
    x, weight, gradient = operands
    frozen = weight.detach()
    fp8_linear(x, frozen, CurrentScaling(Fp8Recipe(scaling="tensorwise"))).backward(gradient)
    assert x.grad is not None
