"""How long pixels take from bytes to embedded patches, beside transformers' way, in one process.

    python benchmarks/tiles_to_patches.py

Compared on the same tiles: the operator and one matmul; the operator in plain torch and one matmul;
and what transformers does: its image processor's rescale and normalise on the host, then the
convolution of the vision tower.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from megatron_llava.ops.tiles_to_patches import (
    pixel_table,
    tiles_to_patches,
    tiles_to_patches_torch,
)

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--width", type=int, default=1152, help="of the tower: SO400M's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = arguments.views, 3, arguments.side, arguments.side
    tiles = torch.randint(0, 256, shape, dtype=torch.uint8)
    patch = arguments.patch
    conv = torch.nn.Conv2d(3, arguments.width, patch, stride=patch).requires_grad_(False)
    table = pixel_table(MEAN, STD, torch.float32)

    def with_matmul(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        rows = function(tiles, table, patch)
        return torch.nn.functional.linear(rows, conv.weight.flatten(1), conv.bias)

    def normalised() -> torch.Tensor:
        from transformers.image_transforms import normalize, rescale

        return torch.from_numpy(
            np.stack([normalize(rescale(tile, 1 / 255), MEAN, STD) for tile in tiles.numpy()])
        )

    pixels = normalised()
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "operator": lambda: tiles_to_patches(tiles, table, patch),
        "plain torch": lambda: tiles_to_patches_torch(tiles, table, patch),
        "transformers: rescale and normalise": normalised,
        "operator and matmul": lambda: with_matmul(tiles_to_patches),
        "plain torch and matmul": lambda: with_matmul(tiles_to_patches_torch),
        "transformers: convolution of normalised pixels": lambda: conv(pixels),
        "transformers: all": lambda: conv(normalised()),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    print(f"tiles {list(shape)}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    print("\n| way | ms (least to most) |\n|---|---|")
    for name, (_, *taken) in times.items():
        median, least, most = statistics.median(taken), min(taken), max(taken)
        print(f"| {name} | {median * 1e3:.1f} ({least * 1e3:.1f} to {most * 1e3:.1f}) |")


if __name__ == "__main__":
    main()
