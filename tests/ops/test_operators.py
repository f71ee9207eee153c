"""The compiled operators as torch sees them, and what they refuse."""

import shutil

import pytest
import torch
from pack_plans import random_plan, random_tables, with_gradients

from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.tiles_to_patches import pixel_table, tiles_to_patches
from megatron_llava.ops.visual_pack import visual_pack
from megatron_llava.platform import extension

COUNTS = 6, 2, 5, 3


def test_the_library_is_there_wherever_a_compiler_is():
    assert (extension.library_path() is not None) or shutil.which("c++") is None


needs_library = pytest.mark.skipif(
    not compiled_for(torch.zeros(1)), reason="the package was installed without a compiler"
)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    tables = random_tables(COUNTS, 20, torch.float32, generator)
    return tables, random_plan(40, COUNTS, generator)


@needs_library
def test_opcheck_finds_nothing_wrong(problem):
    tables, plan = problem
    leaves = [table.clone().requires_grad_() for table in tables]
    operators = torch.ops.megatron_llava
    torch.library.opcheck(operators.visual_pack.default, (*leaves, *plan))
    transpose = plan[2:]
    for wanted in ((True, True, True, True), (False, True, False, False)):
        arguments = torch.randn(40, 20), *transpose, *COUNTS[:2], COUNTS[3], *wanted
        torch.library.opcheck(operators.visual_pack_backward.default, arguments)
    tiles = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    table = pixel_table((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), torch.bfloat16)
    torch.library.opcheck(operators.tiles_to_patches.default, (tiles, table, 4))


@needs_library
def test_torch_compile_sees_no_graph_break(problem):
    tables, plan = problem

    def model(features, specials, text, positions):
        return visual_pack(features.sin(), specials, text, plan, positions).cos()

    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    grad = torch.randn(40, 20)
    found, expected = with_gradients(traced, tables, grad), with_gradients(model, tables, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def pack(tables, plan):
    features, specials, text, positions = tables
    return visual_pack(features, specials, text, plan, positions)


@needs_library
def test_a_position_that_no_tile_has_is_refused(problem):
    tables, plan = problem
    wrong = plan.feature_positions.clone()
    wrong[2] = COUNTS[3]
    with pytest.raises(RuntimeError, match=r"position outside of \[-1, 3\)"):
        pack(tables, plan._replace(feature_positions=wrong))
    with pytest.raises(RuntimeError, match="positions of 5 features, and 6 features"):
        pack(tables, plan._replace(feature_positions=wrong[:5]))


@needs_library
@pytest.mark.parametrize("row", [-1, 13])
def test_a_plan_that_names_a_row_outside_of_the_tables_is_refused(problem, row):
    tables, plan = problem
    taps, weights = plan.taps.clone(), plan.weights.clone()
    taps[7, 1], weights[7, 1] = row, 0.5
    with pytest.raises(RuntimeError, match=r"outside of \[0, 13\)"):
        pack(tables, plan._replace(taps=taps, weights=weights))


@needs_library
@pytest.mark.parametrize(
    ("field", "place", "value", "message"),
    [
        ("csr_rows", 0, 40, r"outside of \[0, 40\)"),
        ("csr_offsets", 3, 10**9, "offsets must rise"),
        ("csr_offsets", -1, 1, "offsets must rise"),
        ("view_bounds", 2, 99, "offsets must rise"),
    ],
)
def test_a_transpose_that_is_none_is_refused(problem, field, place, value, message):
    tables, plan = problem
    wrong = getattr(plan, field).clone()
    wrong[place] = value
    out = pack([t.requires_grad_() for t in tables], plan._replace(**{field: wrong}))
    with pytest.raises(RuntimeError, match=message):
        out.sum().backward()


@needs_library
def test_tables_of_different_types_are_refused(problem):
    (features, specials, text, _), plan = problem
    with pytest.raises(RuntimeError, match="one dtype"):
        visual_pack(features, specials.bfloat16(), text, plan)
    with pytest.raises(RuntimeError, match=r"\[rows, 20\]"):
        visual_pack(features, specials, text[:, :19], plan)
    with pytest.raises(RuntimeError, match="visual_pack takes"):
        visual_pack(*(table.int() for table in (features, specials, text)), plan)


@needs_library
def test_patches_that_do_not_fit_are_refused():
    tiles = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="patches of 10 pixels do not fit tiles of 9"):
        tiles_to_patches(tiles, torch.zeros(3, 256), 10)
