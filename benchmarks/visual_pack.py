"""How long packing takes, forward and backward, beside other ways to do it, in one process.

    python benchmarks/visual_pack.py --tokens 8192 32768
    python benchmarks/visual_pack.py --device cuda --dtype bfloat16 --tokens 8192 32768

SigLIP SO400M features (729 a view) at Qwen2-7B's width, images of four sizes under anyres_max_9,
text around them. Compared with the operator: the same operator in plain torch; transformers'
pack_image_features and masked_scatter on the same features; and copies of as many bytes as must be
read and written (each row that is used once, each row of a result once), made as torch makes a new
tensor, and into memory that is there already. On a GPU the operator and the copy are also replayed
from a CUDA graph, over several sets of inputs: the kernels' own time, which bandwidth is read from.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from cuda_replay import replayed_seconds

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.collate import collate
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.sample import Sample
from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.visual_pack import PackPlan, visual_pack
from megatron_llava.ops.visual_pack_torch import visual_pack_torch
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.token_layout import number_of_tokens, number_of_views

SETTINGS = ImageSettings(
    tile_size=384,
    patch_size=14,
    image_aspect_ratio="anyres_max_9",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="hf",
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
IMAGES = [(1024, 768), (640, 480), (1920, 1080), (500, 375)]
INPUTS = 3
REPLAYED, COPIED = "operator, replayed", "copy to memory that is there, replayed"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


class Problem(NamedTuple):
    """A pack and its inputs: features, special rows and text embeddings, and a gradient."""

    images: list[tuple[int, int]]
    batch: PackedBatch
    plan: PackPlan
    tables: list[torch.Tensor]
    grad: torch.Tensor


def make_problem(tokens: int, hidden: int, dtype: torch.dtype, device: str) -> Problem:
    """A pack of so many tokens: images one after the other while they fit, each in a text."""
    images: list[tuple[int, int]] = []
    left = tokens
    while len(images) < 64:
        size = IMAGES[len(images) % len(IMAGES)]
        if number_of_tokens(size, SETTINGS) + 64 > left:
            break
        images.append(size)
        left -= number_of_tokens(size, SETTINGS)
    text_tokens = np.array_split(np.arange(left), max(len(images), 1))
    samples = [sample(size, text) for size, text in zip(images, text_tokens, strict=True)]
    batch = collate(samples, SETTINGS, with_pixels=False)
    rows = batch.num_views * SETTINGS.tokens_per_view, 1, len(batch.token_ids)
    generator = torch.Generator().manual_seed(0)
    # A row of random numbers, and multiples of it: quick to make, and no row is like another.
    row = torch.randn(hidden, generator=generator)
    tables = [(torch.rand(n, 1, generator=generator) * row).to(device, dtype) for n in rows]
    grad = (torch.rand(batch.num_rows, 1, generator=generator) * row).to(device, dtype)
    return Problem(images, batch, PackPlan.of(batch.to_torch(device)), tables, grad)


def sample(size: tuple[int, int], text: np.ndarray) -> Sample:
    """One image between a few tokens and the rest of a text."""
    ids = np.concatenate((text[:16], [IMAGE_TOKEN_INDEX], text[16:])).astype(np.int64)
    mask = np.zeros(len(ids), dtype=np.uint8)
    return Sample(token_ids=ids, label_mask=mask, image_sizes=[size], images=None, source="")


def transformers_pack(problem: Problem) -> Callable[..., torch.Tensor]:
    """What transformers does: pack_image_features image by image, then masked_scatter."""
    from transformers.models.llava_onevision import modeling_llava_onevision as modeling

    vision = SimpleNamespace(image_size=SETTINGS.tile_size, patch_size=SETTINGS.patch_size)
    pinpoints = [[height, width] for width, height in SETTINGS.grid_pinpoints]
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    model = SimpleNamespace(config=config)
    views = [number_of_views(size, SETTINGS) for size in problem.images]
    sizes = torch.tensor([[height, width] for width, height in problem.images])
    num_text_and_features = sum(len(table) for table in problem.tables) - 1
    first_text = num_text_and_features - len(problem.tables[2]) + 1
    is_image = (problem.plan.taps[:, 0] < first_text)[None, :, None]
    text_rows = (problem.plan.taps[:, 0] - first_text).clamp_min(0)

    def pack(features: torch.Tensor, specials: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        by_view = features.view(-1, SETTINGS.tokens_per_view, features.shape[1])
        packed, _ = modeling.LlavaOnevisionModel.pack_image_features(
            model,
            list(by_view.split(views)),
            sizes,
            image_newline=specials[0],
            vision_aspect_ratio=SETTINGS.image_aspect_ratio,
        )
        # The embeddings of the text with those of the placeholders, as the embedding gives them.
        embeddings = text.index_select(0, text_rows)[None]
        mask = is_image.expand_as(embeddings)
        return embeddings.masked_scatter(mask, torch.cat(packed).to(embeddings.dtype))[0]

    return pack


def bytes_to_move(problem: Problem) -> tuple[int, int]:
    """What the forward and the backward must read and write at least."""
    offsets = problem.plan.csr_offsets
    used = int((offsets.diff() > 0).sum())
    rows, table_rows = len(problem.grad), len(offsets) - 1
    row_bytes = problem.grad.shape[1] * problem.grad.element_size()
    return (used + rows) * row_bytes, (rows + table_rows) * row_bytes


def seconds(device: str, action: Callable[[], Any]) -> float:
    """How long an action takes, with the release of what it makes."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = action()
    del result
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(problem: Problem, device: str, repeats: int) -> dict[str, tuple[list, list]]:
    """Seconds of each repetition, forward and backward, for each way; the ways take turns."""
    taps, weights = problem.plan[:2]
    without_positions = problem.grad[:0], taps, weights, taps[:0, 0]
    ways = {
        "operator": lambda *tables: visual_pack(*tables, problem.plan),
        "plain torch": lambda *tables: visual_pack_torch(*tables, *without_positions),
        "transformers": transformers_pack(problem),
    }
    leaves = [table.requires_grad_() for table in problem.tables]
    with torch.no_grad():
        wanted = ways["operator"](*leaves).float()
        for name, way in ways.items():
            torch.testing.assert_close(way(*leaves).float(), wanted, rtol=2e-2, atol=2e-2, msg=name)
        del wanted
    # A copy reads half of the bytes and writes the other half.
    lengths = [size // 2 // problem.grad.element_size() for size in bytes_to_move(problem)]
    copied = torch.ones(max(lengths), dtype=problem.grad.dtype).to(device)
    there = torch.ones_like(copied)
    times: dict[str, tuple[list, list]] = {
        name: ([], []) for name in (*ways, "copy to new memory", "copy to memory that is there")
    }
    for _ in range(repeats):
        for name, way in ways.items():
            times[name][0].append(seconds(device, lambda way=way: way(*leaves)))
            out = way(*leaves)

            def backward(out: torch.Tensor = out) -> tuple:
                return torch.autograd.grad(out, leaves, problem.grad)

            times[name][1].append(seconds(device, backward))
            del out, backward
        for direction, length in enumerate(lengths):
            source, target = copied[:length], there[:length]
            times["copy to new memory"][direction].append(seconds(device, source.clone))
            times["copy to memory that is there"][direction].append(
                seconds(device, lambda s=source, t=target: t.copy_(s))
            )
    if device == "cuda":
        times |= replayed(problem, copied, lengths, repeats)
    return times


def replayed(
    problem: Problem, copied: torch.Tensor, lengths: list[int], repeats: int
) -> dict[str, tuple[list, list]]:
    """The operator and the copy into memory that is there, from a CUDA graph."""
    tables = [[t.detach().clone().requires_grad_() for t in problem.tables] for _ in range(INPUTS)]
    pairs = [(torch.ones_like(copied), torch.empty_like(copied)) for _ in range(INPUTS)]

    def both(leaves: list[torch.Tensor]) -> tuple:
        out = visual_pack(*leaves, problem.plan)
        return out, torch.autograd.grad(out, leaves, problem.grad)

    def of_all(action: Callable[[Any], Any], inputs: list[Any]) -> list[float]:
        return replayed_seconds([lambda one=one: action(one) for one in inputs], repeats)

    forward = of_all(lambda leaves: visual_pack(*leaves, problem.plan), tables)
    whole = of_all(both, tables)
    backward = [one - two for one, two in zip(whole, forward, strict=True)]
    copies = [
        of_all(lambda pair, n=length: pair[1][:n].copy_(pair[0][:n]), pairs) for length in lengths
    ]
    return {REPLAYED: (forward, backward), COPIED: (copies[0], copies[1])}


def report(problem: Problem, times: dict[str, tuple[list, list]]) -> list[str]:
    """Markdown: medians, spread and the ratio to the operator."""
    moved = sum(bytes_to_move(problem))
    totals = {name: [sum(pair) for pair in zip(*both, strict=True)] for name, both in times.items()}
    operator = statistics.median(totals["operator"])
    lines = [
        f"Pack of {len(problem.grad)} rows, {len(problem.images)} images, "
        f"{problem.batch.num_views} views, {len(problem.batch.token_ids)} text tokens; "
        f"{moved / 1e9:.2f} GB to move, {moved / operator / 1e9:.1f} GB/s by the operator.",
        "",
        "| way | forward ms | backward ms | both ms (least to most) | times the operator |",
        "|---|---|---|---|---|",
    ]
    for name, (forward, backward) in times.items():
        total = totals[name]
        lines.append(
            f"| {name} | {statistics.median(forward) * 1e3:.2f} "
            f"| {statistics.median(backward) * 1e3:.2f} | {statistics.median(total) * 1e3:.2f} "
            f"({min(total) * 1e3:.2f} to {max(total) * 1e3:.2f}) "
            f"| {statistics.median(total) / operator:.2f} |"
        )
    if REPLAYED in times:
        kernels, copy = (statistics.median(totals[name]) for name in (REPLAYED, COPIED))
        lines += [
            "",
            f"Replayed, the operator moves {moved / kernels / 1e9:.0f} GB/s, "
            f"{copy / kernels:.0%} of the copy's {moved / copy / 1e9:.0f} GB/s.",
        ]
    return [*lines, ""]


def heading(device: str) -> list[str]:
    """Where, when and from what this was measured."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
    )
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    load = os.getloadavg()[0]
    return [
        f"`python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}`",
        "",
        f"{name}, {torch.get_num_threads()} threads, load of the machine {load:.1f} at the start; "
        f"torch {torch.__version__}, commit {commit.stdout.strip()}, {time.strftime('%Y-%m-%d')}.",
        "",
    ]


def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--hidden-size", type=int, default=3584)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not compiled_for(torch.empty(0, device=arguments.device)):
        sys.exit(f"the operator is not compiled for {arguments.device}: install with a compiler")
    lines = [f"# Visual packing, {arguments.device}, {arguments.dtype}", ""]
    lines += heading(arguments.device)
    print("\n".join(lines), flush=True)
    for tokens in arguments.tokens:
        problem = make_problem(
            tokens, arguments.hidden_size, DTYPES[arguments.dtype], arguments.device
        )
        section = report(problem, measure(problem, arguments.device, arguments.repeats))
        print("\n".join(section), flush=True)
        lines += section
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
