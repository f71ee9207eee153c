"""How long the row plan of a pack takes: the C++ builder against the Python token layout.

    python benchmarks/plan_builder.py [--rows 8192 32768] [--rounds 10]

Both build the same plan, which is checked first: taps and weights of every packed row, then the
uses of every table row. "new sizes" empties the Python layout's cache before each pack, as packs of
a real mixture nearly do; "sizes seen before" leaves it full. The builder has no cache. Times are
medians, with the 10th and the 90th percentile. The three run in turns, ten plans at a time: others
on the machine slow all of them, and each has its memory to itself as in a run.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import cycle

import numpy as np
from report_header import header

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.row_plan import NumpyPlanner, RowPlanner, visuals_of_samples
from megatron_llava.data.row_plan_library import CompiledPlanner, row_planner
from megatron_llava.vision.anyres import parse_grid_pinpoints, select_best_resolution
from megatron_llava.vision.token_layout import image_layout

SIZES = ((1024, 768), (640, 480), (1920, 1080), (500, 375))
NAMES = ("Python, new sizes", "Python, sizes seen before", "C++")
STEPS = ("count", "plan")


def image_settings() -> ImageSettings:
    """LLaVA-OneVision's: SO400M at 384, up to 6x6 tiles."""
    return ImageSettings(
        tile_size=384,
        patch_size=14,
        image_aspect_ratio="anyres_max_9",
        grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384),
        mm_patch_merge_type="spatial_unpad",
        unpad_round="llava",
        resize_mode="squash",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


class Pack:
    """Samples of one image and as much text, up to a number of rows."""

    def __init__(self, rows: int, settings: ImageSettings) -> None:
        self.rows, self.settings = rows, settings
        sizes: list[tuple[int, int]] = []
        for number, (width, height) in enumerate(cycle(SIZES)):
            # No two images of a pack have one size, as in a real mixture.
            size = (width + 2 * number, height + number)
            visuals = visuals_of_samples([[one] for one in [*sizes, size]], settings)
            tokens, _ = NumpyPlanner().count(visuals, settings)
            if tokens.sum() > rows:
                break
            sizes.append(size)
        self.visuals = visuals_of_samples([[size] for size in sizes], settings)
        tokens, views = NumpyPlanner().count(self.visuals, settings)
        self.num_features = int(views.sum()) * settings.tokens_per_view
        text = (rows - int(tokens.sum())) // len(sizes)
        self.visual_rows = text * np.arange(1, len(sizes) + 1) + np.cumsum(tokens) - tokens
        is_text = np.ones(rows, dtype=bool)
        for start, count in zip(self.visual_rows, tokens, strict=True):
            is_text[start : start + count] = False
        self.text_rows = np.flatnonzero(is_text)

    def plan(self, planner: RowPlanner) -> tuple[list[np.ndarray], list[float]]:
        """The plan's arrays, and when each of its steps ended."""
        times = [time.perf_counter()]
        planner.count(self.visuals, self.settings)
        times.append(time.perf_counter())
        plan = planner.plan(
            self.visuals,
            self.settings,
            visual_rows=self.visual_rows,
            text_rows=self.text_rows,
            num_features=self.num_features,
            total_rows=self.rows,
        )
        times.append(time.perf_counter())
        return [*plan[:2], *plan.uses], times


def milliseconds(pack: Pack, rounds: int) -> dict[str, np.ndarray]:
    """[10 * rounds, 2], the time of each step, by what ran."""
    python, compiled = NumpyPlanner(), row_planner()
    times: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name, planner in zip(NAMES, (python, python, compiled), strict=True):
            for _ in range(10):
                if name == NAMES[0]:
                    image_layout.cache_clear()
                    select_best_resolution.cache_clear()
                times[name].append(np.diff(pack.plan(planner)[1]))
    return {name: np.array(values) * 1e3 for name, values in times.items()}


def report(name: str, times: np.ndarray) -> float:
    whole = times.sum(1)
    low, middle, high = np.percentile(whole, (10, 50, 90))
    steps = ", ".join(
        f"{step} {value:.3f}" for step, value in zip(STEPS, np.median(times, 0), strict=True)
    )
    print(f"  {name:32} {middle:8.3f} ms ({low:.3f} to {high:.3f}; {steps})")
    return float(middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    python, compiled = NumpyPlanner(), row_planner()
    if not isinstance(compiled, CompiledPlanner):
        sys.exit("error: the library is not compiled: python setup.py build_ext --inplace")
    print("\n".join(header()))
    for rows in arguments.rows:
        pack = Pack(rows, image_settings())
        for ours, theirs in zip(pack.plan(compiled)[0], pack.plan(python)[0], strict=True):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        print(f"pack of {rows} rows, {len(pack.visuals)} images, {len(pack.text_rows)} text tokens")
        times = milliseconds(pack, arguments.rounds)
        new, seen, built = (report(name, times[name]) for name in NAMES)
        print(f"  C++ is {new / built:.0f}x and {seen / built:.0f}x faster")


if __name__ == "__main__":
    main()
