r"""Write the questions of a LLaVA file as a task that lmms-eval runs.

python tools/write_lmms_eval_task.py --input valid.json --image-folder images --output tasks/mine
python -m lmms_eval --model llava_hf --model_args pretrained=exported --tasks mine \
    --include_path tasks/mine --batch_size 1
"""

import argparse
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.inference.lmms_eval_task import TaskSettings, write_task


def parse_arguments() -> TaskSettings:
    parser = argparse.ArgumentParser(
        description="Write the questions of a LLaVA file as a task that lmms-eval runs."
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, help="LLaVA .json or .jsonl with the questions")
    add("--image-folder", type=Path, required=True)
    add("--output", type=Path, required=True, metavar="FOLDER", help="to make; names the task")
    add("--max-new-tokens", type=int, default=32, metavar="N", help="of an answer (default: 32)")
    return TaskSettings(**vars(parser.parse_args()))


def main() -> None:
    settings = parse_arguments()
    run_tool(lambda: f"{write_task(settings)} questions in {settings.output}")


if __name__ == "__main__":
    main()
