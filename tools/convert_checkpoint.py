r"""Convert a LLaVA folder, of transformers or of the original code, to Megatron, or back.

python tools/convert_checkpoint.py --from hf --to megatron \
    --load llava-v1.6-vicuna-7b-hf --save checkpoints/vicuna-7b --verify
python tools/convert_checkpoint.py --from llava --to megatron \
    --load llava-v1.6-vicuna-7b --save checkpoints/vicuna-7b --vision-tower clip-vit-large-336
python tools/convert_checkpoint.py --from megatron --to hf \
    --load checkpoints/run1 --save run1-hf --ckpt-step 1000 --dtype bfloat16
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.hf_writer import MAX_SHARD_BYTES
from megatron_llava.convert.llava_checkpoint import (
    export_llava,
    export_mm_projector,
    import_llava,
    open_llava,
)
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.resized_tower import ResizedTower
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import memory_shortage, verify_logits
from megatron_llava.vision.tiles import open_image

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--from", dest="source", required=True, choices=("hf", "llava", "megatron"), help="format")
    targets = ("hf", "llava", "mm_projector", "megatron")
    add("--to", dest="target", required=True, choices=targets, help="format to write")
    add("--load", required=True, metavar="FOLDER", help="folder to read")
    add("--save", required=True, metavar="FOLDER", help="folder to write; must not exist")
    add("--base", metavar="FOLDER", help="weights that adapters in --load are added to")
    add("--ckpt-step", type=int, metavar="N", help="iteration to export (default: the latest)")
    add("--dtype", choices=sorted(DTYPES), help="dtype to write (default: the one that is read)")
    add("--vision-tower", metavar="FOLDER", help="CLIP or SigLIP folder for --from llava")
    add("--vision-image-size", type=int, metavar="N", help="side of a view, by interpolation")
    add("--mm-projector", metavar="FILE", help="mm_projector.bin to take for --from llava")
    add("--without-vision-tower", action="store_true", help="leave the tower out of --to llava")
    add("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES, metavar="N", help="of a file")
    add("--verify", action="store_true", help="compare every tensor, and the logits, afterwards")
    add("--verify-image", action="append", default=[], metavar="FILE", help="compare on it as well")
    arguments = parser.parse_args()
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse options that mean nothing together."""
    if (given.source == "megatron") == (given.target == "megatron"):
        parser.error(
            f"--from {given.source} --to {given.target}: one of the two, and not both, is megatron"
        )
    rules = (
        ("--ckpt-step", given.ckpt_step is not None, given.source == "megatron", "--from megatron"),
        ("--base", given.base, given.source == "megatron", "--from megatron"),
        (
            "--vision-image-size",
            given.vision_image_size is not None,
            given.source == "hf",
            "--from hf",
        ),
        ("--vision-tower", given.vision_tower, given.source == "llava", "--from llava"),
        ("--mm-projector", given.mm_projector, given.source == "llava", "--from llava"),
        (
            "--without-vision-tower",
            given.without_vision_tower,
            given.target == "llava",
            "--to llava",
        ),
        ("--verify-image", given.verify_image, given.verify, "--verify"),
        ("--verify", given.verify, given.target != "mm_projector", "a whole model"),
    )
    for option, is_given, fits, needed in rules:
        if is_given and not fits:
            parser.error(f"{option} belongs to {needed}")


def convert(given: argparse.Namespace) -> None:
    """Do what the command line says; ValueError or OSError for the user."""
    photographs = [open_image(Path(name).read_bytes(), name) for name in given.verify_image]
    progress, dtype, step = Progress("converted"), DTYPES.get(given.dtype), given.ckpt_step
    shard = given.max_shard_bytes
    if given.source == "hf":
        import_hf(given.load, given.save, progress, dtype, image_size=given.vision_image_size)
    elif given.source == "llava":
        import_llava(
            given.load,
            given.save,
            vision_tower=given.vision_tower,
            mm_projector=given.mm_projector,
            progress=progress,
            dtype=dtype,
        )
    elif given.target == "hf":
        export_hf(given.load, given.save, step, dtype, shard, progress, given.base)
    elif given.target == "llava":
        export_llava(
            given.load,
            given.save,
            step,
            dtype,
            shard,
            without_vision_tower=given.without_vision_tower,
            progress=progress,
            base=given.base,
        )
    else:
        export_mm_projector(given.load, given.save, step, dtype, given.base)
    progress.finish()
    print(f"wrote {given.save}")
    if given.verify:
        check(given, photographs)


def check(given: argparse.Namespace, photographs: list[Image.Image]) -> None:
    """Compare what was read with what was written."""
    importing = given.target == "megatron"
    root, folder = (given.save, given.load) if importing else (given.load, given.save)
    dtype, step = DTYPES.get(given.dtype), given.ckpt_step
    opened: HFSource | str = folder
    if given.source == "llava":
        opened, _ = open_llava(Path(folder), given.vision_tower, given.mm_projector)
    if given.vision_image_size is not None:
        patches = given.vision_image_size // read_root_mapping(Path(root))["vision_patch_size"]
        opened = ResizedTower(HFReader(folder), patches)
    if given.without_vision_tower:
        print("nothing is compared: the vision tower was left out")
        return
    print("\n".join(verify(root, opened, step, dtype, given.base).lines()))
    print("every tensor is equal, bit by bit")
    shortage = memory_shortage(root)
    if "llava" in (given.source, given.target):
        print("logits are not compared: transformers does not read the original code's folders")
    elif given.vision_image_size is not None:
        print("logits are not compared: transformers reads the folder for views of another size")
    elif dtype is not None:
        print(f"logits are not compared: the weights were converted to {given.dtype}")
    elif shortage is not None:
        print(f"logits are not compared: {shortage}")
    else:
        differences = verify_logits(root, folder, step, photographs, base=given.base)
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
    with interruptible():
        main()
