r"""Say before a run is started whether it fits, what it costs, and which layouts would be better.

    python tools/plan.py --model llava-next-vicuna-7b --gpus 8 --gpu h100-sxm --bf16 \
        --seq-length 8192 --global-batch-size 32 --samples 760000 --search

Takes the flags of megatron_llava.train besides its own. What packs hold is read from --data-path,
or follows from a typical sample. Memory is that of the tensors, by formulas that are tested against
them; the reserve and all times rest on assumptions, which are printed. Exits with 1 where nothing
that was asked about fits.
"""

from __future__ import annotations

import argparse
import re
import sys

from megatron_llava.config.cli import build_parser, exit_with_error, parse_args
from megatron_llava.config.run import RunConfig
from megatron_llava.config.tool_exit import interruptible
from megatron_llava.config.validate import validate
from megatron_llava.plan.layout import Machine, WorkloadOf, plan_layout
from megatron_llava.plan.recipe import recipe
from megatron_llava.plan.report import change_needed, listing, report
from megatron_llava.plan.search import Planner, change_to_four_bit, nearest_change, search
from megatron_llava.plan.workload import SampleSizes, Workload, workload_of_samples
from megatron_llava.platform.gpus import GIB, GPUS
from megatron_llava.training.start import architecture_from_checkpoint

PROGRAM = "plan"
_ANY_STEPS = 1000


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The tool's own arguments and the flags of training."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        prog=PROGRAM,
    )
    add = parser.add_argument
    add("--gpus", type=int, required=True, metavar="N", help="GPUs of the run")
    add("--gpu", choices=GPUS, help="kind of GPU, for its memory and times")
    add("--gpu-memory", type=_memory, metavar="24GiB", help="of each; that of --gpu by default")
    add("--samples", type=int, metavar="N", help="of one pass (default: those of --data-path)")
    add("--image-size", type=_size, default=(640, 480), metavar="WxH", help="or none (640x480)")
    add("--tokens-per-sample", type=int, metavar="N", help="with the image's (256 more than those)")
    add("--loss-tokens-per-sample", type=int, metavar="N", help="default: all that are text")
    add("--search", action="store_true", help="list the layouts that fit, best first")
    add("--search-limit", type=int, default=5, metavar="N", help="lines of --search (default: 5)")
    arguments, flags = parser.parse_known_args()
    unknown = build_parser().parse_known_args(flags)[1]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments, flags


def _memory(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number with GiB or GB")
    return int(float(match.group(1)) * (GIB if match.group(2) == "GiB" else 10**9))


def _size(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None and text != "none":
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT or none")
    return (int(match.group(1)), int(match.group(2))) if match else None


def planned_machine(arguments: argparse.Namespace) -> Machine:
    """The GPUs of the run.

    Raises:
        ValueError: nothing says how much memory they have.
    """
    kind = GPUS[arguments.gpu] if arguments.gpu else None
    memory = arguments.gpu_memory or (kind.memory if kind else None)
    if memory is None:
        raise ValueError(f"--gpu-memory is not known: give it, or --gpu of {', '.join(GPUS)}")
    return Machine(gpus=arguments.gpus, memory=memory, kind=kind)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raise ValueError where a number of things is none."""
    for name in ("gpus", "samples", "tokens_per_sample", "loss_tokens_per_sample", "search_limit"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number}: give 1 or more")


def planned_config(flags: list[str]) -> RunConfig:
    """The configuration, with what a run needs and a plan does not."""
    config = architecture_from_checkpoint(parse_args(flags, prog=PROGRAM))
    needless = {"data_path": "not read", "lr": max(config.optimizer.min_lr, 1e-5)}
    needless |= {"train_iters": _ANY_STEPS}
    missing = {name: value for name, value in needless.items() if config.get(name) is None}
    if config.parallel.device == "auto":
        missing["device"] = "cuda"
    return config.with_values(missing, "default")


def workload_reader(arguments: argparse.Namespace, reads_store: bool) -> WorkloadOf:
    """What packs hold, which a search asks for again and again."""
    sample = SampleSizes(
        image_size=arguments.image_size,
        tokens=arguments.tokens_per_sample,
        loss_tokens=arguments.loss_tokens_per_sample,
    )
    known: dict[tuple[str, int | None], Workload] = {}

    def workload_of(config: RunConfig) -> Workload:
        key = str(config.data.data_path), config.data.seq_length
        if key not in known:
            if reads_store:
                from megatron_llava.plan.store_workload import workload_of_store

                known[key] = workload_of_store(config, str(config.data.data_path))
            else:
                known[key] = workload_of_samples(config, sample)
        return known[key]

    return workload_of


def main() -> None:
    arguments, flags = parse_arguments()
    try:
        run(arguments, flags)
    except ValueError as error:
        exit_with_error(str(error), PROGRAM)


def run(arguments: argparse.Namespace, flags: list[str]) -> None:
    """Print the plan of the flags as given, what to change, and with --search what else fits."""
    check_numbers(arguments)
    machine, config = planned_machine(arguments), planned_config(flags)
    validate(config, machine.gpus)
    reads_store = "data_path" in config.explicit
    workload_of = workload_reader(arguments, reads_store)
    layout = plan_layout(config, machine, workload_of)
    workload = workload_of(config)
    planned = recipe(config, machine.gpus, workload, arguments.samples)
    print(report(layout, workload.said, planned))
    planner = Planner(config, workload_of)
    if not layout.fits:
        nearest, packed = nearest_change(planner, machine), change_to_four_bit(planner, machine)
        print(change_needed(nearest, config, machine, packed))
    fitting = [layout] if layout.fits else []
    if arguments.search:
        fitting = [other for other in search(planner, machine) if other.fits]
        print(f"\n{len(fitting)} layouts fit, best first:")
        print(listing(fitting, config, arguments.search_limit))
    sys.exit(0 if fitting else 1)


if __name__ == "__main__":
    with interruptible():
        main()
