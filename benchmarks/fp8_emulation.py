"""What FP8 does to the training of the quickstart's model, by emulation on a CPU.

    python benchmarks/fp8_emulation.py [--train-iters 600] [--train 20000] [--fp8-recipe delayed]
        [--wrong-answers 0.3]

Trains the quickstart's checkpoint on its drawn pictures with the quickstart's settings (but in
bfloat16), on one rank and four times from the same start: without FP8 and with --fp8-format hybrid
--fp8-emulation, each in two orders of the samples (--seed). Runs of one order see the same packs.
How far bfloat16 is from itself in another order says what noise is.

The questions can be learned, so the loss ends near zero, where its ratio to another one is noise.
--wrong-answers draws this part of the answers, to train on and held out, anew among those of their
kind of question: the loss then ends at the entropy of that. Exact match still asks for the truth.

Prints means of the training loss over windows of steps, the loss over all held-out questions at
even distances, and exact match of greedy answers to them after the last step (generated in bfloat16
from the weights of each run). Relative differences are given where both losses are above a floor:
below it few tokens of few packs decide. The folder is kept and used again if it is named.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loss_comparison import Pair, accuracy, summary, table, windows
from quickstart_step import ROOT, Losses, make_inputs, preprocess
from report_header import header

from megatron_llava.platform.device import join_process_group, leave_process_group, set_up_device

WINDOWS, EVALUATIONS, FLOOR = 20, 10, 0.05
QUESTIONS, HELD_OUT = 20_000, 600
SEEDS = {"A": 1234, "B": 4321}
PAIRS = (
    Pair("FP8 for bfloat16, order A", "bfloat16 A", "FP8 A"),
    Pair("FP8 for bfloat16, order B", "bfloat16 B", "FP8 B"),
    Pair("order B for A, bfloat16", "bfloat16 A", "bfloat16 B"),
    Pair("order B for A, FP8", "FP8 A", "FP8 B"),
)


class Curves(Losses):
    """Losses of the steps, and of the held-out questions after some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.held_out: list[tuple[str, float]] = []

    def validation(self, iteration: int, loss: float, *_: Any) -> None:
        """Called by the loop after an evaluation."""
        self.held_out.append((str(iteration), loss))


@dataclass(frozen=True)
class Run:
    """What a run left."""

    curves: Curves
    right: dict[str, bool]
    seconds: float
    """A step, evaluations included."""


def spoil(folder: Path, split: str, share: float) -> None:
    """Make a store of the questions with a share of their answers drawn anew, ``wrong_...``."""
    generator, data = random.Random(split), folder / "data"
    records = json.loads((data / f"{split}.json").read_text())
    answers: dict[str, set[str]] = {}
    for record in records:
        answers.setdefault(record["kind"], set()).add(record["conversations"][1]["value"])
    for record in records:
        if generator.random() < share:
            drawn = generator.choice(sorted(answers[record["kind"]]))
            record["conversations"][1]["value"] = drawn
    (data / f"wrong_{split}.json").write_text(json.dumps(records))
    preprocess(folder, f"wrong_{split}")


def run(folder: Path, steps: int, *flags: str) -> Run:
    """Train, and answer the held-out questions."""
    with tempfile.TemporaryDirectory(dir=folder) as saved:
        began = time.perf_counter()
        curves = train(folder, steps, f"--save={saved}", f"--save-interval={steps}", *flags)
        seconds = (time.perf_counter() - began) / steps
        return Run(curves, answered(folder, Path(saved)), seconds)


def train(folder: Path, steps: int, *flags: str) -> Curves:
    """The quickstart's training, with more flags."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    arguments = ["--device=cpu", f"--pretrained-checkpoint={folder / 'megatron'}", "--bf16"]
    arguments += ["--seq-length=2688", "--global-batch-size=1", "--eval-iters=100000"]
    arguments += [f"--eval-interval={max(1, steps // EVALUATIONS)}"]
    arguments += [f"--train-iters={steps}", "--lr=1.5e-3", "--min-lr=3e-5", "--num-workers=0"]
    arguments += ["--lr-decay-style=cosine", f"--lr-warmup-iters={min(40, steps // 4)}"]
    arguments += ["--weight-decay=0.01", "--adam-beta2=0.98", "--clip-grad=1", "--log-interval=1"]
    config = prepare(parse_args([*arguments, *flags]))
    curves = Curves()
    with open_trainer(config, torch.device("cpu"), curves) as trainer:
        trainer.run()
    return curves


def answered(folder: Path, saved: Path) -> dict[str, bool]:
    """Whether the answer to each held-out question is right."""
    from megatron_llava.inference.answer_match import exact_match

    answers, data = saved / "answers.jsonl", folder / "data"
    command = ["tools/evaluate.py", "--load", saved, "--input", data / "valid.json"]
    command += ["--image-folder", data, "--conversation-template", "qwen_1_5", "--bf16"]
    command += ["--max-new-tokens", 8, "--device", "cpu", "--output", answers]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    rows = map(json.loads, answers.read_text().splitlines())
    return {row["id"]: exact_match(row["answer"], row["truth"]) for row in rows}


def report(runs: dict[str, Run], steps: int, recipe: str, wrong: float) -> list[str]:
    """The tables of the runs so far, by their names in ``PAIRS``."""
    pairs = [pair for pair in PAIRS if {pair.reference, pair.other} <= runs.keys()]
    training = {name: windows(one.curves.losses, WINDOWS) for name, one in runs.items()}
    held_out = {name: one.curves.held_out for name, one in runs.items()}
    times = ", ".join(f"{one.seconds:.2f} s ({name})" for name, one in runs.items())
    return [
        f"{steps} steps, --fp8-recipe {recipe}; orders A and B of the samples are --seed "
        f"{SEEDS['A']} and {SEEDS['B']}; {wrong:.0%} of the answers are drawn. Differences are "
        f"relative, where both losses are at least {FLOOR:g}.",
        "",
        f"## Training loss, means over {len(next(iter(training.values())))} windows",
        "",
        *table("steps", training, pairs, FLOOR),
        "",
        *summary(training, pairs, FLOOR),
        "",
        "## Loss of the held-out questions",
        "",
        *table("after step", held_out, pairs, FLOOR),
        "",
        *summary(held_out, pairs, FLOOR),
        "",
        "## Answers to the held-out questions",
        "",
        *accuracy({name: one.right for name, one in runs.items()}, pairs),
        "",
        f"A step took {times}: the emulation says nothing of speed.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-iters", type=int, default=600)
    parser.add_argument("--train", type=int, default=QUESTIONS, help="questions to train on")
    parser.add_argument("--valid", type=int, default=HELD_OUT, help="held-out questions")
    parser.add_argument("--wrong-answers", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--fp8-recipe", choices=("delayed", "tensorwise"), default="delayed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where inputs are made, or were")
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps, recipe = arguments.train_iters, arguments.fp8_recipe
    lines = ["# Training with emulated FP8", "", *(f"    {line}" for line in header()), ""]
    set_up_device("cpu")
    fp8 = ["--fp8-format=hybrid", "--fp8-emulation", f"--fp8-recipe={recipe}"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        make_inputs(folder, arguments.train, arguments.valid)
        if not (folder / "valid.json").is_file():
            preprocess(folder, "valid")
        stores = {"data": folder / "train", "valid-data": folder / "valid"}
        if arguments.wrong_answers:
            for split in ("train", "valid"):
                spoil(folder, split, arguments.wrong_answers)
            stores = {"data": folder / "wrong_train", "valid-data": folder / "wrong_valid"}
        paths = [f"--{name}-path={store}" for name, store in stores.items()]
        join_process_group("cpu", timeout_minutes=10)
        runs: dict[str, Run] = {}
        for order, seed in SEEDS.items():
            for name, flags in (("bfloat16", []), ("FP8", fp8)):
                runs[f"{name} {order}"] = run(folder, steps, *paths, f"--seed={seed}", *flags)
                found = report(runs, steps, recipe, arguments.wrong_answers)
                text = "\n".join([*lines, *found, ""])
                if arguments.output is not None:
                    arguments.output.write_text(text)  # so that an interruption loses one run
        leave_process_group()
    print(text, end="")


if __name__ == "__main__":
    main()
