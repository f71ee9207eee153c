r"""Make a LLaVA starting checkpoint (stage 0) out of a language model and a vision tower.

python tools/merge_checkpoint.py --language-model vicuna-7b-v1.5 \
    --vision-tower clip-vit-large-patch14-336 --projector mlp2x_gelu \
    --to megatron --save checkpoints/vicuna-7b-stage0
python tools/merge_checkpoint.py --language-model Qwen2-7B-Instruct \
    --vision-tower siglip-so400m-patch14-384 --model-type llava_onevision \
    --to hf --save onevision-stage0-hf --dtype bfloat16
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.stage0 import Stage0, merge_to_hf, merge_to_megatron

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_grids(text: str) -> tuple[tuple[int, int], ...]:
    """`1x2,2x1` as (columns, rows) pairs."""
    grids = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is no COLUMNSxROWS such as 2x1")
        grids.append((int(match[1]), int(match[2])))
    return tuple(grids)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--language-model", required=True, metavar="FOLDER", help="Llama, Mistral or Qwen2")
    add("--vision-tower", required=True, metavar="FOLDER", help="CLIP, SigLIP, DINOv2 or AIMv2")
    add("--projector", default="mlp2x_gelu", metavar="TYPE", help="linear, mlpNx_gelu, ...")
    kinds = ("llava_next", "llava_onevision", "llava")
    add("--model-type", choices=kinds, default="llava_next", help="class of transformers")
    add("--grids", type=parse_grids, default=(), metavar="1x2,2x1", help="grids of tiles")
    add("--vision-image-size", type=int, metavar="N", help="side of a view, by interpolation")
    add("--max-views", type=int, default=9, metavar="N", help="of anyres_max_N (llava_onevision)")
    add("--conversation-template", metavar="NAME", help="whose chat template to write")
    add("--seed", type=int, default=0, help="of the projector and the newline")
    add("--to", choices=("hf", "megatron"), default="megatron", help="format to write")
    add("--save", required=True, metavar="FOLDER", help="folder to write; must not exist")
    add("--dtype", choices=sorted(DTYPES), help="default: the language model's")
    arguments = parser.parse_args()
    if arguments.model_type == "llava" and arguments.grids:
        parser.error("--grids belongs to llava_next and llava_onevision: llava has one view")
    if arguments.max_views < 1:
        parser.error(f"--max-views {arguments.max_views}: give at least 1")
    return arguments


def merge(arguments: argparse.Namespace) -> None:
    """Do what the command line says; ValueError or OSError for the user."""
    settings = Stage0(
        language_model=Path(arguments.language_model),
        vision_tower=Path(arguments.vision_tower),
        model_type=arguments.model_type,
        projector=arguments.projector,
        grids=arguments.grids,
        max_views=arguments.max_views,
        seed=arguments.seed,
        conversation_template=arguments.conversation_template,
        vision_image_size=arguments.vision_image_size,
    )
    progress, dtype = Progress("wrote"), DTYPES.get(arguments.dtype)
    if arguments.to == "hf":
        merge_to_hf(settings, arguments.save, dtype, progress=progress)
    else:
        merge_to_megatron(settings, arguments.save, dtype, progress)
    progress.finish()
    print(f"wrote {arguments.save}")


def main() -> None:
    arguments = parse_arguments()
    try:
        merge(arguments)
    except (ValueError, OSError) as error:
        print(f"merge_checkpoint.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    with interruptible():
        main()
