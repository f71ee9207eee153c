r"""Look into a training store: one sample as text, some as an HTML page, or all in numbers.

python tools/inspect_data.py --data-path stores/data --index 17 \
    --tokenizer-model Qwen2-7B-Instruct
python tools/inspect_data.py --data-path stores/data --index 0 --count 50 --html samples.html \
    --tokenizer-model Qwen2-7B-Instruct
python tools/inspect_data.py --data-path stores/data --statistics --verify-checksums
"""

import argparse
import sys
from pathlib import Path

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.tool_exit import interruptible
from megatron_llava.data.describe import describe_sample
from megatron_llava.data.html_view import samples_page
from megatron_llava.data.merged_store import open_store
from megatron_llava.data.statistics import statistics
from megatron_llava.text.tokenizer import TOKENIZER_TYPES, load_tokenizer
from megatron_llava.vision.anyres import parse_grid_pinpoints


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Print one sample of a training store.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-path", required=True, help="prefix of the store")
    add("--index", type=int, default=0, help="number of the sample, from 0")
    add("--count", type=int, default=1, help="samples from --index on, for --html")
    add("--html", help="write the samples to this page, with their views")
    add("--statistics", action="store_true", help="print counts and lengths of the whole store")
    add("--tokenizer-model", help="the one the store was made with; --statistics needs none")
    add("--tokenizer-type", default="auto", choices=TOKENIZER_TYPES, help="kind of tokenizer")
    add("--vision-image-size", type=int, default=384, help="side of one tile in pixels")
    add("--vision-patch-size", type=int, default=14, help="side of one patch in pixels")
    add("--image-aspect-ratio", default="anyres_max_9", help="square, pad, anyres, ...")
    add("--image-grid-pinpoints", default="(1x1),...,(6x6)", help="allowed grids of tiles")
    add("--mm-patch-merge-type", default="spatial_unpad", help="how tiles become tokens")
    add("--verify-checksums", action="store_true", help="first read and check the whole store")
    arguments = parser.parse_args()
    if arguments.tokenizer_model is None and not arguments.statistics:
        parser.error("--tokenizer-model is required, unless --statistics is given")
    if arguments.count < 1 or (arguments.count > 1 and arguments.html is None):
        parser.error(f"--count {arguments.count} is for --html, at least 1")
    return arguments


def image_settings(arguments: argparse.Namespace) -> ImageSettings:
    tile_size = arguments.vision_image_size
    uses_grid = arguments.image_aspect_ratio not in ("square", "pad")
    pinpoints = parse_grid_pinpoints(arguments.image_grid_pinpoints, tile_size) if uses_grid else ()
    return ImageSettings(
        tile_size=tile_size,
        patch_size=arguments.vision_patch_size,
        image_aspect_ratio=arguments.image_aspect_ratio,
        grid_pinpoints=pinpoints,
        mm_patch_merge_type=arguments.mm_patch_merge_type,
        unpad_round="llava",
        # What follows decides pixels, not counts.
        resize_mode="squash",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


def main() -> None:
    arguments = parse_arguments()
    try:
        store = open_store(arguments.data_path)
        if arguments.verify_checksums:
            store.verify_checksums()
        settings = image_settings(arguments)
        if arguments.statistics:
            print(statistics(store, settings))
        if arguments.tokenizer_model is None:
            return
        tokenizer = load_tokenizer(arguments.tokenizer_model, arguments.tokenizer_type)
        if arguments.html is None:
            print(describe_sample(store, arguments.index, tokenizer, settings))
            return
        indices = range(arguments.index, arguments.index + arguments.count)
        page = samples_page(store, indices, tokenizer, settings)
        path = Path(arguments.html)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
        print(f"wrote {arguments.html}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with interruptible():
        main()
