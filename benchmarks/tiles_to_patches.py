"""How long pixels take from bytes to the rows that the patch embedding multiplies, in one process.

    python benchmarks/tiles_to_patches.py

On the same tiles, in float32: the operator; the operator in plain torch; and what transformers
does: its image processor's rescale and normalise of each tile on the host, then the convolution of
the vision tower, whose input path is im2col (measured as torch's unfold, and as what the
convolution takes beyond the one matmul). The rows are compared first: they may differ by one unit
in the last place of float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report_header import header
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from megatron_llava.ops.tiles_to_patches import (
    pixel_table,
    tiles_to_patches,
    tiles_to_patches_torch,
)

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


OURS, THEIRS = "operator", "transformers: rescale, normalise, im2col"


def make_ways(arguments: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared, by name; the two named above give the same rows."""
    shape = arguments.views, 3, arguments.side, arguments.side
    tiles = torch.randint(0, 256, shape, dtype=torch.uint8)
    patch = arguments.patch
    conv = torch.nn.Conv2d(3, arguments.width, patch, stride=patch).requires_grad_(False)
    table = pixel_table(MEAN, STD, torch.float32)
    processor = SiglipImageProcessorPil()

    def normalised() -> torch.Tensor:
        pixels = [
            processor.normalize(processor.rescale(tile, 1 / 255), MEAN, STD)
            for tile in tiles.numpy()
        ]
        return torch.from_numpy(np.stack(pixels).astype(np.float32, copy=False))

    def im2col(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.unfold(pixels, patch, stride=patch).transpose(1, 2).contiguous()

    def matmul(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, conv.weight.flatten(1), conv.bias)

    pixels, rows = normalised(), tiles_to_patches(tiles, table, patch)
    return {
        OURS: lambda: tiles_to_patches(tiles, table, patch),
        "operator in plain torch": lambda: tiles_to_patches_torch(tiles, table, patch),
        THEIRS: lambda: im2col(normalised()),
        "transformers: rescale and normalise alone": normalised,
        "im2col alone": lambda: im2col(pixels),
        "matmul alone": lambda: matmul(rows),
        "operator and matmul": lambda: matmul(tiles_to_patches(tiles, table, patch)),
        "transformers: rescale, normalise, convolution": lambda: conv(normalised()),
    }


def units_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many float32 numbers lie between two, at most."""
    ordered = []
    for values in (a, b):
        bits = values.contiguous().view(torch.int32).long()
        ordered.append(torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits))
    return int((ordered[0] - ordered[1]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--width", type=int, default=1152, help="of the tower: SO400M's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = ["# Tiles to patches, cpu, float32", "", *(f"    {line}" for line in header()), ""]
    ways = make_ways(arguments)
    apart = units_apart(ways[OURS](), ways[THEIRS]())
    assert apart <= 1, f"the rows differ by {apart} units in the last place"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    lines += [
        f"{arguments.views} tiles of {arguments.side}, patches of {arguments.patch}, "
        f"{arguments.threads} threads; the rows differ by at most {apart} unit in the last place.",
        "",
        "| way | ms (least to most) | times the operator |",
        "|---|---|---|",
    ]
    operator = statistics.median(times[OURS][1:])
    for name, (_, *taken) in times.items():
        median = statistics.median(taken)
        spread = f"{min(taken) * 1e3:.1f} to {max(taken) * 1e3:.1f}"
        lines.append(f"| {name} | {median * 1e3:.1f} ({spread}) | {median / operator:.1f} |")
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
