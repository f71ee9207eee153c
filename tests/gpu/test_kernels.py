"""The kernels of csrc/ on a GPU; skipped, visibly, where there is none.

tests/gpu/sanitize.sh runs this file under compute-sanitizer.
"""

import pytest
import torch
from pack_plans import random_plan, random_tables, slow_visual_pack, with_gradients

from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.tiles_to_patches import (
    pixel_table,
    tiles_to_patches,
    tiles_to_patches_torch,
)
from megatron_llava.ops.visual_pack import PackPlan, visual_pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(
        torch.cuda.is_available() and not compiled_for(torch.empty(0, device="cuda")),
        reason="the package was installed without nvcc",
    ),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Rows of whole 16-byte vectors, of less than one warp's slice, of a slice and a bit, and of none.
HIDDEN_SIZES = [8, 64, 1032, 3584, 1, 77]
COUNTS = 300, 3, 120
WITH_POSITIONS = *COUNTS, 7


def problem(rows=700, hidden=64, dtype=torch.float32, counts=COUNTS):
    """Tables, plan and gradient on the CPU."""
    generator = torch.Generator().manual_seed(hidden)
    tables = random_tables(counts, hidden, dtype, generator)
    grad = torch.randn(rows, hidden, generator=generator).to(dtype)
    return tables, random_plan(rows, counts, generator), grad


def cuda(plan: PackPlan) -> PackPlan:
    return PackPlan(*(field.cuda() for field in plan))


def run(tables, plan, grad):
    """The packed rows and the three gradients, on the GPU."""
    plan = cuda(plan)
    return with_gradients(lambda *t: pack(t, plan), [table.cuda() for table in tables], grad.cuda())


def pack(tables, plan):
    """The operator on three tables, or four with the positions."""
    return visual_pack(*tables[:3], plan, *tables[3:])


@pytest.mark.parametrize("counts", [COUNTS, WITH_POSITIONS], ids=["plain", "positions"])
@pytest.mark.parametrize("hidden", HIDDEN_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_equals_float64_and_the_cpu_bit_for_bit(dtype, hidden, counts):
    tables, plan, grad = problem(hidden=hidden, dtype=dtype, counts=counts)
    found = [result.cpu() for result in run(tables, plan, grad)]
    slow = with_gradients(lambda *t: slow_visual_pack(t, plan), tables, grad)
    last = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(dtype, 0.0)
    for result, expected in zip(found, slow, strict=True):
        error = (result.double() - expected.double()).abs()
        assert (error <= last * expected.double().abs() + 1e-4).all()
    on_cpu = with_gradients(lambda *t: pack(t, plan), tables, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, on_cpu, strict=True))


@pytest.mark.parametrize("counts", [(5, 0, 0), (1, 1, 0), (2000, 1, 500), (9, 0, 1, 3)])
@pytest.mark.parametrize("rows", [0, 1, 40, 5000])
def test_small_and_large_packs(rows, counts):
    tables, plan, grad = problem(rows, 256, torch.bfloat16, counts)
    found = run(tables, plan, grad)
    on_cpu = with_gradients(lambda *t: pack(t, plan), tables, grad)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, on_cpu, strict=True))


def test_rows_that_begin_anywhere_in_memory():
    """Tables at an odd element: no 16-byte loads are possible."""
    tables, plan, grad = problem(hidden=64, dtype=torch.bfloat16)
    expected = run(tables, plan, grad)
    shifted = []
    for table in tables:
        memory = torch.empty(table.numel() + 1, dtype=table.dtype, device="cuda")
        memory[1:] = table.flatten().cuda()
        shifted.append(memory[1:].view(table.shape))
    leaves = [table.requires_grad_() for table in shifted]
    out = visual_pack(*leaves, cuda(plan))
    gradients = torch.autograd.grad(out, leaves, grad.cuda())
    assert all(torch.equal(a, b) for a, b in zip([out, *gradients], expected, strict=True))


def test_ten_runs_give_the_same_bits():
    tables, plan, grad = problem(4000, 512, torch.bfloat16, WITH_POSITIONS)
    runs = [run(tables, plan, grad) for _ in range(10)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("hidden", [64, 77])
def test_every_element_of_the_outputs_is_written(hidden):
    """New memory is filled with NaN; nothing of that may remain."""
    tables, plan, grad = problem(hidden=hidden, counts=WITH_POSITIONS)
    expected = run(tables, plan, grad)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        assert torch.empty(9, device="cuda").isnan().all()
        found = run(tables, plan, grad)
        tiles = torch.zeros(2, 3, 9, 9, dtype=torch.uint8, device="cuda")
        patches = tiles_to_patches(tiles, torch.ones(3, 256, device="cuda"), 4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (patches == 1).all()


@pytest.mark.parametrize(("side", "patch"), [(384, 14), (336, 14), (27, 9), (31, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_patches_equal_plain_torch(dtype, side, patch):
    generator = torch.Generator().manual_seed(side)
    tiles = torch.randint(0, 256, (3, 3, side, side), generator=generator, dtype=torch.uint8)
    table = pixel_table((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), dtype)
    found = tiles_to_patches(tiles.cuda(), table.cuda(), patch)
    assert torch.equal(found.cpu(), tiles_to_patches_torch(tiles, table, patch))


def test_the_kernels_run_on_the_current_stream():
    """A table that is filled on a side stream after a long wait is read after that."""
    tables, plan, grad = problem(hidden=512)
    expected = run(tables, plan, grad)
    plan, grad = cuda(plan), grad.cuda()
    sources = [table.cuda() for table in tables]
    targets = [torch.zeros_like(source).requires_grad_() for source in sources]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
        out = visual_pack(*targets, plan)
        gradients = torch.autograd.grad(out, targets, grad)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip([out, *gradients], expected, strict=True))


def test_a_cuda_graph_replays_forward_and_backward():
    tables, plan, grad = problem(hidden=512, dtype=torch.bfloat16)
    expected = run(tables, plan, grad)
    plan, grad = cuda(plan), grad.cuda()
    leaves = [torch.zeros_like(table, device="cuda").requires_grad_() for table in tables]

    def step():
        out = visual_pack(*leaves, plan)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf, table in zip(leaves, tables, strict=True):
            leaf.copy_(table)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_nothing_waits_for_the_gpu():
    tables, plan, grad = problem(hidden=512, dtype=torch.bfloat16)
    plan, grad = cuda(plan), grad.cuda()
    leaves = [table.cuda().requires_grad_() for table in tables]
    tiles = torch.zeros(2, 3, 28, 28, dtype=torch.uint8, device="cuda")
    table = pixel_table((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), torch.bfloat16).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(visual_pack(*leaves, plan), leaves, grad)
        tiles_to_patches(tiles, table, 14)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradcheck_in_float64():
    tables, plan, _ = problem(12, 3, torch.float64, (5, 2, 4, 3))
    plan = cuda(plan)
    leaves = [table.cuda().requires_grad_() for table in tables]
    assert torch.autograd.gradcheck(lambda *t: pack(t, plan), leaves)


def test_opcheck_finds_nothing_wrong():
    tables, plan, _ = problem(12, 8, torch.float32, (5, 2, 4, 3))
    leaves = [table.cuda().requires_grad_() for table in tables]
    torch.library.opcheck(torch.ops.megatron_llava.visual_pack.default, (*leaves, *cuda(plan)))
