"""What FP8 does to the loss of the quickstart's model, by emulation on a CPU.

    python benchmarks/fp8_emulation.py [--train-iters 600] [--train 20000] [--fp8-recipe delayed]

Trains the quickstart's checkpoint on its drawn pictures with the quickstart's settings (but in
bfloat16), on one rank and twice from the same start: without FP8, then with --fp8-format hybrid
--fp8-emulation. Both see the same samples in the same packs. Prints the losses at even distances
and the ratio of their means over the last tenth of the steps. The folder is kept and used again if
it is named.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from quickstart_step import Losses, make_inputs
from report_header import header

from megatron_llava.platform.device import join_process_group, leave_process_group, set_up_device

SHOWN, QUESTIONS = 10, 20_000


def run(folder: Path, steps: int, *flags: str) -> tuple[list[float], float]:
    """Losses of the steps, and seconds a step."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    arguments = ["--device=cpu", f"--pretrained-checkpoint={folder / 'megatron'}", "--bf16"]
    arguments += [f"--data-path={folder / 'train'}", "--seq-length=2688", "--global-batch-size=1"]
    arguments += [f"--train-iters={steps}", "--lr=1.5e-3", "--min-lr=3e-5", "--num-workers=0"]
    arguments += ["--lr-decay-style=cosine", f"--lr-warmup-iters={min(40, steps // 4)}"]
    arguments += ["--weight-decay=0.01", "--adam-beta2=0.98", "--clip-grad=1", "--log-interval=1"]
    config = prepare(parse_args([*arguments, *flags]))
    reporter = Losses()
    with open_trainer(config, torch.device("cpu"), reporter) as trainer:
        started = time.perf_counter()
        trainer.run()
    return reporter.losses, (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-iters", type=int, default=600)
    parser.add_argument("--train", type=int, default=QUESTIONS, help="questions to train on")
    parser.add_argument("--fp8-recipe", choices=("delayed", "tensorwise"), default="delayed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where inputs are made, or were")
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = arguments.train_iters
    lines = ["# The loss with emulated FP8", "", *(f"    {line}" for line in header()), ""]
    set_up_device("cpu")
    fp8_flags = ["--fp8-format=hybrid", "--fp8-emulation", f"--fp8-recipe={arguments.fp8_recipe}"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        make_inputs(folder, arguments.train)
        join_process_group("cpu", timeout_minutes=10)
        bf16, bf16_seconds = run(folder, steps)
        fp8, fp8_seconds = run(folder, steps, *fp8_flags)
        leave_process_group()
    lines += ["| step | bfloat16 | FP8 |", "|---|---|---|"]
    for step in sorted({max(1, round(steps * part / SHOWN)) for part in range(SHOWN + 1)}):
        lines.append(f"| {step} | {bf16[step - 1]:.4f} | {fp8[step - 1]:.4f} |")
    last = max(1, steps // 10)
    ends = [statistics.fmean(losses[-last:]) for losses in (bf16, fp8)]
    lines += [
        "",
        f"Mean of the last {last} of {steps} steps: {ends[0]:.4f} in bfloat16, {ends[1]:.4f} in "
        f"FP8 ({arguments.fp8_recipe}), a ratio of {ends[1] / ends[0]:.4f}. A step took "
        f"{bf16_seconds:.2f} and {fp8_seconds:.2f} s: the emulation says nothing of speed.",
    ]
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
