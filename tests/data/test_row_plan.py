"""Row plans: the C++ builder says bit for bit what the Python token layout says."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_library import compile_plan

from megatron_llava.config.image import GRID_CHOICES, GRID_WASTES, ImageSettings
from megatron_llava.config.image_checks import MERGE_TYPES
from megatron_llava.config.video import NEWLINE_POSITIONS, POOL_MODES, VideoSettings
from megatron_llava.data import row_plan_library
from megatron_llava.data.row_plan import (
    NoLayoutError,
    NumpyPlanner,
    num_special_rows,
    visuals_of_samples,
    visuals_of_videos,
)
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.token_layout import number_of_tokens, number_of_views

PYTHON = NumpyPlanner()
BASE = ImageSettings(
    tile_size=336,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="llava",
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
SO400M = replace(
    BASE,
    tile_size=384,
    image_aspect_ratio="anyres_max_9",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384),
)
SIZES_WHERE_ROUNDING_MATTERS = [
    *[(984, 205), (1056, 220), (1128, 235), (369, 820), (375, 1375), (738, 820), (750, 1375)],
    *[(1107, 820), (1125, 1375), (947, 1155), (1, 10_000), (10_000, 1), (1, 1), (2**31 - 1, 5)],
]
ASPECT_RATIOS = [
    *["square", "pad", "anyres", "nobase", "anyres_max_1", "anyres_max_2", "anyres_max_5"],
    *["anyres_thresholded_1", "anyres_thresholded_3"],
]


@st.composite
def image_settings_strategy(draw) -> ImageSettings:
    tile_size = draw(st.integers(1, 12)) * 14 + draw(st.integers(0, 13))
    aspect_ratio = draw(st.sampled_from(ASPECT_RATIOS))
    mode = draw(st.sampled_from(POOL_MODES))
    largest = 4 if mode == "bilinear" else min(2, tile_size // 14)
    resizes = "max" in aspect_ratio or "thresholded" in aspect_ratio
    kinds = [kind for kind in MERGE_TYPES if not (resizes and "maxpool" in kind)]
    merge_type = draw(st.sampled_from(kinds))
    pools = not resizes and "maxpool" not in merge_type
    side = st.integers(1, 5)
    grids = draw(st.lists(st.tuples(side, side), min_size=1, max_size=9))
    return replace(
        BASE,
        tile_size=tile_size,
        image_aspect_ratio=aspect_ratio,
        grid_pinpoints=()
        if aspect_ratio in ("square", "pad")
        else tuple((a * tile_size, b * tile_size) for a, b in grids),
        mm_patch_merge_type=merge_type,
        unpad_round=draw(st.sampled_from(["llava", "hf"])),
        grid_choice="resolution"
        if aspect_ratio in ("square", "pad")
        else draw(st.sampled_from(GRID_CHOICES)),
        grid_waste=draw(st.sampled_from(GRID_WASTES)),
        mm_spatial_pool_mode=mode,
        image_pool_stride=draw(st.integers(1, largest)) if pools else 1,
        grid_waste_weight=draw(st.sampled_from([0.0, 0.1, 0.25, 1.0])),
        image_separator=draw(st.booleans()),
        image_start_end=draw(st.booleans()),
    )


@st.composite
def video_settings_strategy(draw, tile_size: int) -> VideoSettings:
    mode = draw(st.sampled_from(POOL_MODES))
    largest = 4 if mode == "bilinear" else min(2, tile_size // 14)
    position = draw(st.sampled_from(NEWLINE_POSITIONS))
    kinds = [k for k in MERGE_TYPES if position not in ("grid", "frame") or "spatial" not in k]
    return VideoSettings(
        tile_size=tile_size,
        patch_size=14,
        mm_patch_merge_type=draw(st.sampled_from([*kinds, "spatial_unpad"])),
        mm_spatial_pool_mode=mode,
        mm_spatial_pool_stride=draw(st.integers(1, largest)),
        mm_newline_position=position,
        image_start_end=draw(st.booleans()),
    )


@st.composite
def settings_of_packs(draw):
    image = draw(image_settings_strategy())
    return image, draw(st.none() | video_settings_strategy(image.tile_size))


def random_pack(generator, image, with_videos):
    """Visuals, and (text tokens, padding) before each of them and behind the last."""
    samples = []
    for _ in range(generator.integers(0, 4)):
        largest = generator.choice([40, 400, 3000])
        sizes = generator.integers(1, largest, (generator.integers(1, 3), 2))
        samples.append([tuple(size) for size in sizes.tolist()])
    visuals = visuals_of_samples(samples, image)
    if with_videos:
        frames = generator.integers(1, 5, generator.integers(0, 3)).tolist()
        visuals = generator.permutation(np.concatenate([visuals, visuals_of_videos(frames)]))
    return visuals, generator.integers(0, (6, 4), (len(visuals) + 1, 2)).tolist()


def placed(tokens, gaps):
    """First rows of the visuals, rows of the text tokens, and the length of the pack."""
    row, visual_rows, text_rows = 0, [], []
    for (text, padding), here in zip(gaps, [*tokens, 0], strict=True):
        text_rows += range(row, row + text)
        row += text + padding
        visual_rows.append(row)
        row += int(here)
    return np.array(visual_rows[:-1], np.int64), np.array(text_rows, np.int64), row


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        as_integers = np.int32 if a.dtype == np.float32 else a.dtype
        assert np.array_equal(a.view(as_integers), b.view(as_integers))


@given(both=settings_of_packs(), seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_packs_are_the_same_bit_for_bit(compiled_planner, both, seed):
    generator = np.random.default_rng(seed)
    for _ in range(12):
        pack = random_pack(generator, both[0], with_videos=both[1] is not None)
        assert_same_plan(compiled_planner, *both, *pack)


def assert_same_plan(compiled_planner, image, video, visuals, gaps):
    try:
        tokens, views = PYTHON.count(visuals, image, video)
    except NoLayoutError as error:
        with pytest.raises(NoLayoutError) as caught:
            compiled_planner.count(visuals, image, video)
        assert (str(caught.value), caught.value.visual) == (str(error), error.visual)
        return
    assert_same_bits(compiled_planner.count(visuals, image, video), (tokens, views))
    visual_rows, text_rows, total_rows = placed(tokens, gaps)
    num_features = max(int(views.sum()), 1) * image.tokens_per_view
    plans = [
        planner.plan(
            visuals,
            image,
            visual_rows=visual_rows,
            text_rows=text_rows,
            num_features=num_features,
            total_rows=total_rows,
            video=video,
        )
        for planner in (PYTHON, compiled_planner)
    ]
    assert_same_bits(*(plan[:2] for plan in plans))
    assert_same_bits(*(plan.uses for plan in plans))
    table_rows = num_features + num_special_rows(image, video) + len(text_rows)
    uses = [p.transpose(*plans[0][:2], table_rows) for p in (PYTHON, compiled_planner)]
    assert_same_bits(*uses)


def has_tokens(size, image):
    try:
        return number_of_tokens(size, image) > 0
    except ValueError:
        return False


@pytest.mark.parametrize("merge_type", MERGE_TYPES)
@pytest.mark.parametrize("unpad_round", ["llava", "hf"])
def test_counts_of_every_small_size(compiled_planner, merge_type, unpad_round):
    """Among them are those whose side times scale is a whole number, or falls just short of it."""
    tile = replace(BASE, tile_size=28, mm_patch_merge_type=merge_type, unpad_round=unpad_round)
    grids = parse_grid_pinpoints("(1x1),...,(3x4)", 28)
    sizes = list(product(range(8, 60), repeat=2))
    ratios = ("anyres", "anyres_max_2", "anyres_thresholded_3")
    for aspect_ratio in ratios[: 1 if "maxpool" in merge_type else 3]:
        image = replace(tile, grid_pinpoints=grids, image_aspect_ratio=aspect_ratio)
        wide = [size for size in sizes if has_tokens(size, image)]
        tokens, views = compiled_planner.count(
            visuals_of_samples([[s] for s in wide], image), image
        )
        assert tokens.tolist() == [number_of_tokens(size, image) for size in wide]
        assert views.tolist() == [number_of_views(size, image) for size in wide]


@pytest.mark.parametrize("image", [BASE, SO400M, replace(SO400M, image_aspect_ratio="anyres")])
@pytest.mark.parametrize("unpad_round", ["llava", "hf"])
def test_counts_of_published_settings(compiled_planner, image, unpad_round):
    image = replace(image, unpad_round=unpad_round)
    random = np.random.default_rng(3).integers(8, 4000, (2000, 2)).tolist()
    sizes = [tuple(size) for size in random] + SIZES_WHERE_ROUNDING_MATTERS[:-4]
    tokens, _ = compiled_planner.count(visuals_of_samples([[size] for size in sizes], image), image)
    assert tokens.tolist() == [number_of_tokens(size, image) for size in sizes]


@pytest.mark.parametrize("unpad_round", ["llava", "hf"])
def test_unpadded_sides_within_a_hair_of_a_whole_number(compiled_planner, unpad_round):
    """side * scale is n +- r / width: either side of where 7 digits round up, at many distances."""
    image = replace(BASE, grid_pinpoints=((672, 672),), unpad_round=unpad_round)
    generator = np.random.default_rng(5)
    widths = np.exp(generator.uniform(np.log(1e4), np.log(2e9), 3000)).astype(np.int64)
    rows = generator.integers(1, 49, 3000)
    heights = (widths * rows + 24) // 48 + generator.integers(-3, 4, 3000)
    sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
    sizes += [(height, width) for width, height in sizes]
    sizes = [size for size in sizes if has_tokens(size, image)]
    assert len(sizes) > 4000
    tokens, _ = compiled_planner.count(visuals_of_samples([[size] for size in sizes], image), image)
    assert tokens.tolist() == [number_of_tokens(size, image) for size in sizes]


@pytest.mark.parametrize(
    ("side", "views", "tokens"), [(11, 100, 11 * 12), (35, 1012, 31 * 32), (35, 1013, 35 * 36)]
)
def test_a_canvas_at_the_edge_of_shrinking(compiled_planner, side, views, tokens):
    """t = 1.1 exactly, 1.1002 and 1.0997; one patch per tile."""
    image = replace(
        BASE,
        tile_size=14,
        image_aspect_ratio=f"anyres_max_{views}",
        grid_pinpoints=((14 * side, 14 * side),),
        mm_patch_merge_type="spatial_unpad_nobase",
    )
    for planner in (PYTHON, compiled_planner):
        found, _ = planner.count(visuals_of_samples([[(999, 999)]], image), image)
        assert found.tolist() == [tokens]


def layouts(planner, image, sizes):
    """The plans of packs of one image each, or the message where there is none."""
    found = []
    for size in sizes:
        visuals = visuals_of_samples([[size]], image)
        try:
            tokens, views = planner.count(visuals, image)
        except NoLayoutError as error:
            found.append(str(error))
            continue
        where = {"visual_rows": np.zeros(1, np.int64), "text_rows": np.zeros(0, np.int64)}
        how = {"num_features": int(views[0]) * 729, "total_rows": int(tokens[0])}
        plan = planner.plan(visuals, image, **where, **how)
        found.append([*plan[:2], *plan.uses])
    return found


@pytest.mark.parametrize("aspect_ratio", ["anyres", "anyres_max_4", "anyres_thresholded_4"])
@pytest.mark.parametrize("merge_type", ["spatial_unpad", "spatial_unpad_nobase"])
@pytest.mark.parametrize("unpad_round", ["llava", "hf"])
def test_layouts_of_awkward_sizes(compiled_planner, aspect_ratio, merge_type, unpad_round):
    image = replace(
        SO400M,
        image_aspect_ratio=aspect_ratio,
        mm_patch_merge_type=merge_type,
        unpad_round=unpad_round,
    )
    both = [layouts(p, image, SIZES_WHERE_ROUNDING_MATTERS) for p in (PYTHON, compiled_planner)]
    for ours, theirs in zip(*both, strict=True):
        if isinstance(ours, str):
            assert theirs == ours
        else:
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("planner_name", ["python", "compiled"])
def test_the_transpose_is_its_definition(compiled_planner, planner_name):
    planner = {"python": PYTHON, "compiled": compiled_planner}[planner_name]
    generator = np.random.default_rng(1)
    taps = generator.integers(0, 9, (40, 4))
    weights = generator.random((40, 4), dtype=np.float32) * generator.integers(0, 2, (40, 4))
    weights = weights.astype(np.float32)
    uses = planner.transpose(taps, weights, 12)
    assert uses.offsets.tolist()[0] == 0 and len(uses.offsets) == 13
    for table_row in range(12):
        expected = [
            (row, weights[row, tap])
            for row in range(40)
            for tap in range(4)
            if taps[row, tap] == table_row and weights[row, tap] != 0
        ]
        part = slice(*uses.offsets[table_row : table_row + 2])
        assert list(zip(uses.rows[part], uses.weights[part], strict=True)) == expected


@pytest.mark.parametrize("planner_name", ["python", "compiled"])
def test_a_visual_without_layout_is_named(compiled_planner, planner_name):
    planner = {"python": PYTHON, "compiled": compiled_planner}[planner_name]
    image = replace(BASE, image_aspect_ratio="nobase")
    visuals = visuals_of_samples([[(500, 400)], [(10_000, 1)], [(0, 5)]], image)
    with pytest.raises(NoLayoutError, match="image of 10000x1 pixels is too thin") as caught:
        planner.count(visuals, image)
    assert caught.value.visual == 1
    with pytest.raises(NoLayoutError, match="image of 0x5 pixels: a side is below 1"):
        planner.count(visuals[2:], image)


def test_threads_do_not_disturb_each_other(compiled_planner):
    sizes = [(1024, 768), (640, 480), (1920, 1080), (500, 375)]
    expected = layouts(PYTHON, SO400M, sizes)
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda _: layouts(compiled_planner, SO400M, sizes), range(32))
        for run in runs:
            for ours, theirs in zip(expected, run, strict=True):
                assert_same_bits(ours, theirs)


def test_the_library_is_taken_where_it_is_installed():
    installed = row_plan_library.library() is not None
    planner = row_plan_library.row_planner()
    assert isinstance(planner, row_plan_library.CompiledPlanner if installed else NumpyPlanner)


def test_the_builder_keeps_to_its_buffers(tmp_path: Path):
    """Random packs in buffers of exact size, under AddressSanitizer and UBSan."""
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    driver = str(Path(__file__).parents[1] / "csrc" / "plan_driver.cpp")
    program = compile_plan(tmp_path / "driver", *sanitizers, driver)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    packs, rows = (int(word) for word in done.stdout.split()[::2])
    assert packs > 2000 and rows > 500_000
