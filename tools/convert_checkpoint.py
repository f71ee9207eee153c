r"""Convert a Hugging Face LLaVA folder to a Megatron checkpoint, or back.

python tools/convert_checkpoint.py --from hf --to megatron \
    --load llava-v1.6-vicuna-7b-hf --save checkpoints/vicuna-7b --verify
python tools/convert_checkpoint.py --from megatron --to hf \
    --load checkpoints/run1 --save run1-hf --ckpt-step 1000 --dtype bfloat16
"""

import argparse
import sys
from pathlib import Path

import torch

from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import memory_shortage, verify_logits
from megatron_llava.vision.tiles import open_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert between a Hugging Face LLaVA folder and a Megatron checkpoint."
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, choices=("hf", "megatron"), help="format to read")
    add("--to", dest="target", required=True, choices=("hf", "megatron"), help="format to write")
    add("--load", required=True, metavar="FOLDER", help="folder to read")
    add("--save", required=True, metavar="FOLDER", help="folder to write; must not exist")
    add("--ckpt-step", type=int, metavar="N", help="iteration to export (default: the latest)")
    add("--dtype", choices=sorted(DTYPES), help="dtype to export (default: the checkpoint's)")
    add("--verify", action="store_true", help="compare every tensor, and the logits, afterwards")
    add("--verify-image", action="append", default=[], metavar="FILE", help="compare on it as well")
    arguments = parser.parse_args()
    if arguments.source == arguments.target:
        parser.error(f"--from {arguments.source} --to {arguments.target}: nothing to convert")
    if arguments.source == "hf" and (arguments.ckpt_step is not None or arguments.dtype):
        parser.error("--ckpt-step and --dtype belong to --from megatron")
    if arguments.verify_image and not arguments.verify:
        parser.error("--verify-image needs --verify: add it")
    return arguments


def convert(arguments: argparse.Namespace) -> None:
    progress = Progress("converted")
    dtype = DTYPES.get(arguments.dtype)
    step = arguments.ckpt_step
    photographs = [open_image(Path(name).read_bytes(), name) for name in arguments.verify_image]
    if arguments.source == "hf":
        import_hf(arguments.load, arguments.save, progress)
        root, hf_folder = arguments.save, arguments.load
    else:
        export_hf(arguments.load, arguments.save, step, dtype, progress=progress)
        root, hf_folder = arguments.load, arguments.save
    progress.finish()
    print(f"wrote {arguments.save}")
    if arguments.verify:
        print("\n".join(verify(root, hf_folder, step, dtype).lines()))
        print("every tensor is equal, bit by bit")
        shortage = memory_shortage(root)
        if dtype is not None:
            print(f"logits are not compared: the weights were rounded to {arguments.dtype}")
        elif shortage is not None:
            print(f"logits are not compared: {shortage}")
        else:
            differences = verify_logits(root, hf_folder, step, photographs)
            for name, difference in differences.items():
                print(f"{name:<15}{difference:>10.1e}")
            largest = max(differences.values())
            print(f"logits of transformers and Megatron differ by at most {largest:.1e}")


def main() -> None:
    arguments = parse_arguments()
    try:
        convert(arguments)
    except (ValueError, OSError) as error:
        print(f"convert_checkpoint.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
