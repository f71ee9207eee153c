r"""Write the model card of a model from the runs that made it.

python tools/write_model_card.py --name LLaVA-NeXT-7B --gpus "8 A100-80G" "8 A100-80G" \
    --stages checkpoints/stage1 checkpoints/stage2 --output exported/README.md
"""

import argparse
import sys
from pathlib import Path

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.observe.model_card import model_card, read_stage


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a model card: sizes, views, and data, hyper-parameters, steps and "
        "compute of every stage, from what the runs left beside their checkpoints and in their "
        "logs."
    )
    add = parser.add_argument
    add("--name", required=True, help="of the model")
    add(
        "--stages",
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="what --save named in each run, in their order",
    )
    add(
        "--log-files",
        nargs="+",
        metavar="FILE",
        help="of each stage (default: what the run's --log-file named, where it is still there)",
    )
    add(
        "--gpus",
        nargs="+",
        default=[],
        metavar="GPUS",
        help="of each stage, such as '8 A100-80G', to be multiplied by its hours",
    )
    add("--output", type=Path, required=True, help="the Markdown file to write")
    add("--overwrite", action="store_true", help="replace it")
    arguments = parser.parse_args()
    try:
        count = len(arguments.stages)
        for flag, given in (("--log-files", arguments.log_files), ("--gpus", arguments.gpus)):
            if given and len(given) != count:
                raise ValueError(f"{flag} has {len(given)} values for {count} --stages")
        if arguments.output.exists() and not arguments.overwrite:
            raise ValueError(f"--output {arguments.output} exists: give --overwrite, or another")
        logs = arguments.log_files or [None] * count
        stages = [read_stage(*pair) for pair in zip(arguments.stages, logs, strict=True)]
        text = model_card(arguments.name, stages, arguments.gpus)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    with interruptible():
        main()
