"""The GPU's division of the work among threads, gone through on the CPU, equals the operators."""

import ctypes
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from pack_plans import random_plan, random_tables

from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.tiles_to_patches import pixel_table, tiles_to_patches
from megatron_llava.ops.visual_pack import visual_pack

ROOT = Path(__file__).parents[2]
SPECIAL_PARTS, VIEW_PARTS = 64, 8
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        not compiled_for(torch.zeros(1)), reason="the package was installed without a compiler"
    ),
]


class Arguments(ctypes.Structure):
    """A structure of pointers and int64, as csrc/visual_pack.h has them."""

    @classmethod
    def of(cls, *values):
        return cls(*(v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values))


class Forward(Arguments):
    _fields_ = [
        *[(f"table{n}", ctypes.c_void_p) for n in range(3)],
        *[(f"count{n}", ctypes.c_int64) for n in range(2)],
        *[(name, ctypes.c_void_p) for name in ("taps", "weights", "out")],
        *[(name, ctypes.c_int64) for name in ("num_rows", "hidden")],
        *[(name, ctypes.c_void_p) for name in ("positions", "feature_positions")],
    ]


class Backward(Arguments):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("grad", "offsets", "rows", "weights")],
        *[(f"grad{n}", ctypes.c_void_p) for n in range(3)],
        *[(f"count{n}", ctypes.c_int64) for n in range(3)],
        *[(name, ctypes.c_int64) for name in ("first_special", "first_text", "hidden")],
        *[(name, ctypes.c_void_p) for name in ("parts", "grad_positions")],
        *[(name, ctypes.c_int64) for name in ("num_positions", "num_views")],
        *[(name, ctypes.c_void_p) for name in ("view_bounds", "feature_positions", "view_parts")],
    ]


class Patches(Arguments):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("tiles", "table", "out")],
        ("views", ctypes.c_int64),
        *[(name, ctypes.c_int) for name in ("side", "patch", "grid", "element_bytes")],
    ]


@pytest.fixture(scope="module")
def by_threads(tmp_path_factory):
    library = tmp_path_factory.mktemp("csrc") / "by_threads.so"
    flags = runpy.run_path(str(ROOT / "setup.py"), run_name="read")["CXX_FLAGS"]
    source = ROOT / "tests/csrc/by_threads.cpp"
    command = ["c++", *flags, "-O1", "-shared", "-I", ROOT / "csrc", source, "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def poisoned(*shape, dtype):
    """Not one element may keep this."""
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize("blocks", [1, 7, 400])
@pytest.mark.parametrize("reversed_order", [False, True])
@pytest.mark.parametrize(("hidden", "wide"), [(7, False), (64, True), (2056, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_by_threads_equals_the_operator(
    by_threads, dtype, hidden, wide, reversed_order, blocks
):
    generator = torch.Generator().manual_seed(hidden)
    counts, rows = (9, 2, 6, 3), 21
    tables = random_tables(counts, hidden, dtype, generator)
    plan = random_plan(rows, counts, generator)
    how = DTYPES.index(dtype), int(wide)

    out = poisoned(rows, hidden, dtype=dtype)
    added = tables[3], plan.feature_positions
    *three, _ = tables
    forward = Forward.of(*three, *counts[:2], plan.taps, plan.weights, out, rows, hidden, *added)
    by_threads.forward_by_threads(
        *how, ctypes.byref(forward), ctypes.c_int64(blocks), int(reversed_order)
    )
    leaves = [table.clone().requires_grad_() for table in tables]
    expected = visual_pack(*leaves[:3], plan, leaves[3])
    assert torch.equal(out, expected)

    grad = torch.randn(rows, hidden, generator=generator).to(dtype)
    gradients = [poisoned(n, hidden, dtype=dtype) for n in counts]
    sum_dtype = torch.promote_types(dtype, torch.float32)
    parts = poisoned(counts[1], SPECIAL_PARTS, hidden, dtype=sum_dtype)
    places = counts[0], sum(counts[:2]), hidden
    num_views = len(plan.view_bounds) - 1
    view_parts = poisoned(num_views, VIEW_PARTS, hidden, dtype=sum_dtype)
    of_views = num_views, plan.view_bounds, plan.feature_positions, view_parts
    backward = Backward.of(
        *(grad, *plan[2:5]),
        *gradients[:3],
        *counts[:3],
        *places,
        *(parts, gradients[3], counts[3]),
        *of_views,
    )
    by_threads.backward_by_threads(
        *how, ctypes.byref(backward), ctypes.c_int64(blocks), int(reversed_order)
    )
    wanted = torch.autograd.grad(expected, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("threads", [1, 100, 3000])
@pytest.mark.parametrize(("side", "patch"), [(28, 14), (27, 7), (9, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_by_threads_equal_the_operator(by_threads, dtype, side, patch, threads):
    generator = torch.Generator().manual_seed(side)
    tiles = torch.randint(0, 256, (3, 3, side, side), generator=generator, dtype=torch.uint8)
    table = pixel_table((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), dtype)
    expected = tiles_to_patches(tiles, table, patch)
    out = poisoned(*expected.shape, dtype=dtype)
    sizes = len(tiles), side, patch, side // patch, table.element_size()
    by_threads.patches_by_threads(
        ctypes.byref(Patches.of(tiles, table, out, *sizes)), ctypes.c_int64(threads)
    )
    assert torch.equal(out, expected)
