r"""Train a few steps at two parallel layouts from one checkpoint and say where they differ first.

    python tools/compare_layouts.py --steps 5 \
        --first "1" --second "4 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2" \
        -- --pretrained-checkpoint start --data-path stores/data --seq-length 8192 --lr 1e-3

A layout is a number of ranks and the flags of megatron_llava.train that it needs; what follows
``--`` is common to both and must not save, load or log. Every rank writes its parameters after each
step; the first difference is said with its step, its parameter and the rank that holds it. Ranks of
one layout that hold the same part of a parameter are held against each other as well.

A parameter whose true gradient is zero (a key's bias) would take steps of rounding noise from Adam:
the runs have --adam-eps 1e-4 unless the common flags say otherwise. Give a rate so high that a few
steps move the parameters by more than the tolerance.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from megatron_llava.config.cli import exit_with_error, parse_args
from megatron_llava.config.tool_exit import interruptible

PROGRAM = "compare_layouts"
LAUNCHER = "{python} -m torch.distributed.run --standalone --nproc-per-node {ranks}"
RECORD = "--record-into"


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
    parser.add_argument(
        "--weight-tolerance", type=float, default=1e-4, help="of a weight's norm (default: 1e-4)"
    )
    parser.add_argument(
        "--replica-tolerance",
        type=float,
        default=0.0,
        help="of a weight's norm, between ranks of one layout that hold the same part; more than 0 "
        "where kernels add up in varying order (default: 0)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where parameters of every step are written: in float32, for each rank of both "
        "layouts; removed at the end (default: the system's temporary folder)",
    )
    parser.add_argument(
        "--launcher",
        default=LAUNCHER,
        help="what starts a script on all ranks; on several machines it needs a --folder that all "
        f"of them see (default: {LAUNCHER})",
    )
    parser.add_argument("common", nargs="+", help="flags of megatron_llava.train for both")
    return parser.parse_args()


def train(layout: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Run one layout, every rank of which records into ``folder``.

    Raises:
        ValueError: the run failed; holds the error of the first rank that had one.
    """
    ranks, *flags = shlex.split(layout)
    if not ranks.isdigit():
        raise ValueError(f"layout {layout!r} must begin with a number of ranks")
    launcher = arguments.launcher.replace("{python}", sys.executable).replace("{ranks}", ranks)
    steps = [f"--train-iters={arguments.steps}", "--log-interval=1"]
    own = ["--adam-eps=1e-4", *arguments.common, *flags, *steps]
    command = [*shlex.split(launcher), __file__, RECORD, str(folder), *own]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"--launcher {command[0]}: {error.strerror}") from None
    if done.returncode:
        marker = f"{PROGRAM}: error: "
        said = [line for line in done.stderr.splitlines() if line.startswith(marker)]
        reason = said[0].removeprefix(marker) if said else done.stderr[-300:]
        raise ValueError(f"layout {layout!r} failed: {reason}")


def record(folder: Path, arguments: list[str]) -> None:
    """What a rank that torchrun started does."""
    from megatron_llava.platform.device import (
        join_process_group,
        leave_process_group,
        set_up_device,
    )
    from megatron_llava.train import prepare

    config = prepare(parse_args(arguments, prog=PROGRAM))
    device = set_up_device(config.parallel.device, tf32=config.precision.tf32)
    # Imports Megatron-core, which must find its device prepared.
    from megatron_llava.training.record import record_training

    join_process_group(config.parallel.device, config.parallel.distributed_timeout_minutes)
    try:
        record_training(config, device, folder)
    finally:
        leave_process_group()


def check_flags(layout: str, arguments: argparse.Namespace) -> None:
    """Raise ValueError for flags by which one layout would see what the other has written."""
    _, *flags = shlex.split(layout)
    config = parse_args([*arguments.common, *flags], prog=PROGRAM)
    checkpoint, logging = config.checkpoint, config.logging
    given = {
        "--save": checkpoint.save,
        "--load": checkpoint.load,
        "--log-file": logging.log_file,
        "--tensorboard-dir": logging.tensorboard_dir,
        "--wandb-project": logging.wandb_project,
    }
    for option, value in given.items():
        if value is not None:
            raise ValueError(
                f"{option} {value}: both layouts would use it: drop it (weights come from "
                "--pretrained-checkpoint or --load-hf)"
            )


def compare(arguments: argparse.Namespace) -> None:
    """Print what was compared; ValueError naming the first difference beyond the tolerance."""
    from megatron_llava.parallel.recorded_steps import Tolerances, compare_steps, read_step

    if arguments.steps < 1:
        raise ValueError(f"--steps {arguments.steps}: give 1 or more")
    if arguments.folder is not None and not arguments.folder.is_dir():
        raise ValueError(f"--folder {arguments.folder} is not a folder")
    tolerances = Tolerances(
        values=arguments.tolerance,
        weights=arguments.weight_tolerance,
        replicas=arguments.replica_tolerance,
    )
    layouts = (arguments.first, arguments.second)
    for layout in layouts:
        check_flags(layout, arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folders = [Path(name) / "first", Path(name) / "second"]
        for folder, layout in zip(folders, layouts, strict=True):
            train(layout, arguments, folder)
        for step in range(1, arguments.steps + 1):
            one, other = (read_step(folder, step) for folder in folders)
            try:
                print(f"step {step}: {compare_steps(one, other, tolerances)}")
            except ValueError as error:
                raise ValueError(f"the first difference is in step {step}: {error}") from None


def main() -> None:
    try:
        if sys.argv[1:2] == [RECORD]:
            record(Path(sys.argv[2]), sys.argv[3:])
            return
        compare(parse_arguments())
    except ValueError as error:
        exit_with_error(str(error), PROGRAM)
    print("the layouts agree")


if __name__ == "__main__":
    with interruptible():
        main()
