r"""Take low-rank adapters to PEFT's format, from it, or into the weights that they adapt.

python tools/lora.py export --load checkpoints/run --save run-peft --base-model llava-hf/my-model
python tools/lora.py import --load some-peft --base checkpoints/start --save checkpoints/adapters
python tools/lora.py merge --load checkpoints/run --base checkpoints/start --save checkpoints/merged
"""

import argparse
import sys
from pathlib import Path

import torch

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.convert.adapter_checkpoint import merge_adapters
from megatron_llava.convert.peft_folder import export_peft, import_peft
from megatron_llava.convert.progress import Progress

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "export": "write the adapters of a run as a folder of PEFT",
        "import": "make such a folder a checkpoint to train on from, or to merge",
        "merge": "make a whole model of adapters and the weights beside them",
    }
    for name, help_text in helps.items():
        command = commands.add_parser(name, help=help_text)
        add = command.add_argument
        add("--load", required=True, type=Path, metavar="FOLDER", help="adapters to read")
        add("--save", required=True, type=Path, metavar="FOLDER", help="to write; must not exist")
        if name != "export":
            add("--base", required=True, type=Path, metavar="FOLDER", help="weights beside them")
        if name != "import":
            add("--ckpt-step", type=int, metavar="N", help="iteration (default: the latest)")
        if name == "export":
            add("--dtype", choices=sorted(DTYPES), help="to write (default: the one that is read)")
            add("--base-model", metavar="NAME", help="Hugging Face model, for adapter_config.json")
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    """Do what the command line says; ValueError or OSError for the user."""
    progress = Progress("written")
    if given.command == "export":
        dtype = DTYPES.get(given.dtype)
        export_peft(given.load, given.save, given.ckpt_step, dtype, given.base_model)
    elif given.command == "import":
        import_peft(given.load, given.base, given.save, progress)
    else:
        merge_adapters(given.load, given.base, given.save, given.ckpt_step, progress)
    progress.finish()
    print(f"wrote {given.save}")


def main() -> None:
    arguments = parse_arguments()
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"lora.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    with interruptible():
        main()
