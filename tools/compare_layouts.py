r"""Train a few steps at two parallel layouts from one checkpoint and say where they differ first.

    python tools/compare_layouts.py --steps 5 \
        --first "1" --second "4 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2" \
        -- --pretrained-checkpoint start --data-path stores/data --seq-length 8192 --lr 1e-5

A layout is a number of ranks and the flags of megatron_llava.train that it needs; what follows
``--`` is common to both and must not save, load or log.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_llava.config.cli import exit_with_error

COMPARED = ("lm loss", "grad norm")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", required=True, help="ranks and flags of one layout")
    parser.add_argument("--second", required=True, help="ranks and flags of the other")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="of losses and gradient norms (default: 1e-4)"
    )
    # Adam gives a weight whose true gradient is zero (a key's bias) steps of rounding noise.
    parser.add_argument(
        "--weight-tolerance", type=float, default=1e-2, help="of a weight's norm (default: 1e-2)"
    )
    parser.add_argument("common", nargs="+", help="flags of megatron_llava.train for both")
    return parser.parse_args()


def train(layout: str, common: list[str], steps: int, folder: Path) -> list[dict[str, Any]]:
    """Run one layout; its checkpoint lies under ``folder``.

    Returns:
        One record of the log per step.

    Raises:
        ValueError: the run failed; holds the last line that it printed.
    """
    ranks, *flags = shlex.split(layout)
    if not ranks.isdigit():
        raise ValueError(f"layout {layout!r} must begin with a number of ranks")
    log = folder / "log.jsonl"
    own = ["--train-iters", steps, "--save", folder / "run", "--save-interval", steps]
    own += ["--log-interval", 1, "--log-file", log, "--no-progress-bar"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    command = [sys.executable, *launcher, "-m", "megatron_llava.train", *common, *flags, *own]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "megatron_llava.train" in line]
        raise ValueError(f"layout {layout!r} failed: {said[0] if said else done.stderr[-300:]}")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    """The parameters that a run ended with, whatever layout wrote them."""
    from megatron_llava.convert.checkpoint import load_state
    from megatron_llava.convert.root_files import read_root_mapping

    root = folder / "run"
    return load_state(root, read_root_mapping(root))


def relative(left: float, right: float) -> float:
    return abs(left - right) / max(abs(left), abs(right), 1e-30)


def compare(arguments: argparse.Namespace) -> None:
    """Print what was compared; ValueError naming the first difference beyond the tolerance."""
    layouts = (arguments.first, arguments.second)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "first", Path(name) / "second"]
        logs = []
        for folder, layout in zip(folders, layouts, strict=True):
            folder.mkdir()
            logs.append(train(layout, arguments.common, arguments.steps, folder))
        for one, other in zip(*logs, strict=True):
            shown = ", ".join(f"{key} {one[key]:.6g} and {other[key]:.6g}" for key in COMPARED)
            print(f"step {one['iteration']}: {shown}")
            for key in COMPARED:
                if relative(one[key], other[key]) > arguments.tolerance:
                    raise ValueError(f"the first difference is in {key} of step {one['iteration']}")
        compare_weights(*(weights(folder) for folder in folders), arguments.weight_tolerance)


def compare_weights(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Print the largest difference; ValueError naming the first parameter that differs too much."""
    largest = ("", 0.0)
    for name, weight in one.items():
        left, right = weight.double(), other[name].double()
        scale = max(float(left.norm()), 1e-30)
        difference = float((left - right).norm()) / scale
        if difference > tolerance:
            row = int((left - right).reshape(len(left), -1).abs().amax(1).argmax())
            raise ValueError(
                f"the losses agree, but {name} differs by {difference:.1e} of its norm after the "
                f"last step, most in row {row} of {len(left)}"
            )
        largest = max(largest, (name, difference), key=lambda pair: pair[1])
    print(f"weights after the last step: at most {largest[1]:.1e} of a norm apart ({largest[0]})")


def main() -> None:
    try:
        compare(parse_arguments())
    except ValueError as error:
        exit_with_error(str(error), "compare_layouts")
    print("the layouts agree")


if __name__ == "__main__":
    main()
