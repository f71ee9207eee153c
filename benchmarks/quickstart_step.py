"""What the compiled operators change in a training step of the quickstart's model.

    python benchmarks/quickstart_step.py [--train-iters 12]

Trains the quickstart's checkpoint on its drawn pictures, on one rank and twice from the same
start: with the operators in plain torch, then compiled. The first loss must be the same bit for
bit, the others within a millionth: gradients of rows with many uses are summed in another order.
Prints how long a step takes, and the share of it that goes to packing (forward and backward) and to
turning tiles into patches, from torch's profiler. The folder is kept and used again if it is named.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from report_header import header
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_llava.platform.device import join_process_group, leave_process_group, set_up_device

ROOT = Path(__file__).parents[1]
PACK, PATCHES = "packing", "tiles to patches"
# Backwards have names of their own: of the plain path's autograd function, of the operator.
BACKWARDS = ("_RowSumBackward", "megatron_llava::visual_pack_backward")
WARM_UP = 2


def make_inputs(folder: Path, questions: int = 400, held_out: int = 8) -> None:
    """The quickstart's checkpoint and a store of so many questions, by its own commands.

    Args:
        held_out: questions that are drawn beside them, and not stored.
    """
    if (folder / "megatron").is_dir():
        return
    data, hf = folder / "data", folder / "hf"
    render = ["examples/quickstart/render_dataset.py", "--output", data, "--train", questions]
    convert = ["tools/convert_checkpoint.py", "--from", "hf", "--to", "megatron", "--load", hf]
    for command in (
        [*render, "--valid", held_out],
        ["examples/quickstart/make_checkpoint.py", "--output", hf, "--data", data / "train.json"],
        [*convert, "--save", folder / "megatron"],
    ):
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    preprocess(folder, "train")


def preprocess(folder: Path, split: str) -> None:
    """Make a store of the questions that were drawn: train or valid."""
    data = folder / "data"
    command = ["tools/preprocess_data.py", "--input", data / f"{split}.json"]
    command += ["--image-folder", data, "--tokenizer-model", folder / "hf"]
    command += ["--conversation-template", "qwen_1_5", "--output-prefix", folder / split]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


class Losses:
    """A reporter that keeps the loss and the end of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends = [time.perf_counter()]

    def message(self, text: str) -> None:
        """Nothing is printed between the steps."""

    def advance_to(self, iteration: int) -> None:
        self.ends.append(time.perf_counter())

    def training(self, iteration: int, values: dict[str, float], *_: Any) -> None:
        self.losses.append(values["lm loss"])


def recorded(name: str, function: Any) -> Any:
    """The function as an event of the profiler."""

    def call(*arguments: Any) -> Any:
        with record_function(name):
            return function(*arguments)

    return call


def run(folder: Path, steps: int, *, compiled: bool) -> tuple[list[float], list[float], dict]:
    """Losses, seconds of the steps after the first ones, and seconds a step by part."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.models import llava
    from megatron_llava.ops import tiles_to_patches, visual_pack
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    arguments = ["--device=cpu", f"--pretrained-checkpoint={folder / 'megatron'}"]
    arguments += [f"--data-path={folder / 'train'}", "--seq-length=2688", "--global-batch-size=1"]
    arguments += [f"--train-iters={steps}", "--lr=1.5e-3", "--num-workers=0", "--log-interval=1"]
    config = prepare(parse_args(arguments))
    reporter = Losses()
    with ExitStack() as stack:
        if not compiled:
            for module in (tiles_to_patches, visual_pack):
                stack.enter_context(patch.object(module, "compiled_for", lambda tensor: False))
        parts = {PACK: "visual_pack", PATCHES: "tiles_to_patches"}
        for name, function in parts.items():
            wrapped = recorded(name, getattr(llava, function))
            stack.enter_context(patch.object(llava, function, wrapped))
        trainer = stack.enter_context(open_trainer(config, torch.device("cpu"), reporter))
        reporter.ends = [time.perf_counter()]
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            trainer.run()
    times = [b - a for a, b in zip(reporter.ends, reporter.ends[1:], strict=False)]
    totals = {event.key: event.cpu_time_total / 1e6 / steps for event in profiler.key_averages()}
    backward = next(totals[name] for name in BACKWARDS if name in totals)
    return (
        reporter.losses,
        times[WARM_UP:],
        {"packing, forward": totals[PACK], "packing, backward": backward, PATCHES: totals[PATCHES]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-iters", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where inputs are made, or were")
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = ["# A step of the quickstart's model", "", *(f"    {line}" for line in header()), ""]
    set_up_device("cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        make_inputs(folder)
        join_process_group("cpu", timeout_minutes=10)
        plain = run(folder, arguments.train_iters, compiled=False)
        compiled = run(folder, arguments.train_iters, compiled=True)
        leave_process_group()
    apart = [abs(a - b) / a for a, b in zip(plain[0], compiled[0], strict=True)]
    assert apart[0] == 0.0 and max(apart) < 1e-6, (plain[0], compiled[0])
    lines += [
        f"Losses of {len(apart)} steps, {plain[0][0]:.6f} to {plain[0][-1]:.6f}: the first is the "
        f"same bit for bit, the others within {max(apart):.1e}. One rank, {arguments.threads} "
        "threads.",
        "",
        "| | plain torch | compiled |",
        "|---|---|---|",
    ]
    medians = [statistics.median(times) for _, times, _ in (plain, compiled)]
    lines.append("| step, ms | " + " | ".join(f"{value * 1e3:.0f}" for value in medians) + " |")
    for name in plain[2]:
        cells = [
            f"{parts[name] * 1e3:.2f} ms, {parts[name] / step:.2%}"
            for (_, _, parts), step in zip((plain, compiled), medians, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
