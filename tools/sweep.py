r"""Start a run for each combination of the axes of a YAML file, one after the other or by Slurm.

python tools/sweep.py --sweep examples/sweeps/llm_and_grids.yaml --set output=/scratch/out --dry-run
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.plan.sweep import Sweep, SweepRun, check_flags, read_sweep, slurm_script


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Start a run for each combination of the axes of a YAML file. The flags of all "
        "runs of training are checked before the first begins."
    )
    add = parser.add_argument
    add("--sweep", type=Path, required=True, metavar="FILE", help="see examples/sweeps")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="variables of the file")
    add("--run", nargs="+", metavar="NAME", help="only these runs")
    add("--dry-run", action="store_true", help="print the command lines and start nothing")
    add("--slurm", type=Path, metavar="FILE", help="write a job array for sbatch, start nothing")
    add("--keep-going", action="store_true", help="start the other runs where one fails")
    return parser.parse_args()


def given_variables(arguments: argparse.Namespace) -> dict[str, str]:
    """ValueError for a --set that is no NAME=VALUE."""
    for item in arguments.set:
        if "=" not in item:
            raise ValueError(f"--set {item}: expected NAME=VALUE")
    return dict(item.split("=", 1) for item in arguments.set)


def chosen(sweep: Sweep, names: Sequence[str] | None) -> Sweep:
    """The sweep with the runs of these names, in its own order."""
    runs = {run.name: run for run in sweep.runs}
    for name in names or ():
        if name not in runs:
            raise ValueError(f"--run {name}: there is no such run; use {', '.join(runs)}")
    wanted = set(names or runs)
    kept = tuple(run for run in sweep.runs if run.name in wanted)
    return Sweep(runs=kept, slurm=sweep.slurm)


def start(run: SweepRun) -> int:
    """Run to its end; it is told to stop, and waited for, where this program is."""
    process = subprocess.Popen(run.command)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def work() -> str:
    arguments = parse_arguments()
    sweep = chosen(read_sweep(arguments.sweep, given_variables(arguments)), arguments.run)
    for run in sweep.runs:
        check_flags(run)
    if arguments.dry_run:
        return "\n".join(f"{run.name}: {shlex.join(run.command)}" for run in sweep.runs)
    if arguments.slurm is not None:
        if not arguments.slurm.absolute().parent.is_dir():
            raise ValueError(f"--slurm {arguments.slurm}: there is no such folder")
        arguments.slurm.write_text(slurm_script(sweep, arguments.sweep.stem), encoding="utf-8")
        return f"wrote {arguments.slurm}: sbatch starts {len(sweep.runs)} runs"
    failed = {}
    for number, run in enumerate(sweep.runs, start=1):
        print(f"run {number} of {len(sweep.runs)}: {run.name}", flush=True)
        code = start(run)
        if code and not arguments.keep_going:
            print(f"error: run {run.name} ended with code {code}", file=sys.stderr)
            sys.exit(code)
        failed |= {run.name: code} if code else {}
    if failed:
        said = ", ".join(f"{name} with code {code}" for name, code in failed.items())
        sys.exit(f"error: {len(failed)} of {len(sweep.runs)} runs failed: {said}")
    return f"{len(sweep.runs)} of {len(sweep.runs)} runs are complete"


if __name__ == "__main__":
    run_tool(work)
