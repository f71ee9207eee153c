r"""Leave near duplicates of earlier records out, before preprocessing.

python tools/deduplicate.py --input data.json --image-folder images --workers 16 \
    --output data-distinct.jsonl
"""

import argparse
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.curation.arguments import add_kept, add_records
from megatron_llava.curation.deduplicate import DeduplicateSettings, deduplicate
from megatron_llava.curation.image_hash import DEFAULT_DISTANCE
from megatron_llava.curation.near_duplicates import BY
from megatron_llava.curation.text_similarity import DEFAULT_SIMILARITY


def parse_arguments() -> DeduplicateSettings:
    parser = argparse.ArgumentParser(
        description="Leave near duplicates of earlier records out, before preprocessing."
    )
    add = parser.add_argument
    add_records(parser)
    add("--image-folder", type=Path, help="image paths are relative to it")
    add(
        "--by",
        choices=BY,
        default="both",
        help="what has to be near: all images in their order and the text, or one of them; records "
        "without images are compared by text in any case (default: both)",
    )
    add(
        "--image-hash-distance",
        type=int,
        default=DEFAULT_DISTANCE,
        metavar="N",
        help="images are near whose 64-bit perceptual hashes differ in at most N bits, always an "
        f"even number (default: {DEFAULT_DISTANCE})",
    )
    add(
        "--text-similarity",
        type=float,
        default=DEFAULT_SIMILARITY,
        metavar="J",
        help="texts are near whose answers, and whose questions, share this part of their runs of "
        f"three words, estimated (default: {DEFAULT_SIMILARITY})",
    )
    add_kept(parser, "a mixture's random choices", "the output and the report")
    add(
        "--report",
        type=Path,
        help="a .jsonl line for each one removed (default: OUTPUT.removed.jsonl)",
    )
    add("--workers", type=int, default=1, help="processes that decode and hash (default: 1)")
    add("--max-bad-records", type=int, default=0, help="leave out up to this many (default: 0)")
    return DeduplicateSettings(**vars(parser.parse_args()))


def main() -> None:
    def work() -> str:
        settings = parse_arguments()
        return f"{settings.output}: {deduplicate(settings)}"

    run_tool(work)


if __name__ == "__main__":
    main()
