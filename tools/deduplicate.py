r"""Leave near duplicates of earlier records out, before preprocessing.

python tools/deduplicate.py --input data.json --image-folder images --workers 16 \
    --output data-distinct.jsonl
"""

import argparse
import signal
import sys
from pathlib import Path

from megatron_llava.curation.deduplicate import DeduplicateSettings, deduplicate
from megatron_llava.curation.image_hash import DEFAULT_DISTANCE
from megatron_llava.curation.near_duplicates import BY
from megatron_llava.curation.text_similarity import DEFAULT_SIMILARITY


def parse_arguments() -> DeduplicateSettings:
    parser = argparse.ArgumentParser(
        description="Leave near duplicates of earlier records out, before preprocessing."
    )
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        required=True,
        help="records: .json, .jsonl, {a,b}, {00..99} or * in the name, or a .yaml mixture of them",
    )
    add("--data-root", type=Path, help="relative paths in a mixture are relative to it")
    add("--image-folder", type=Path, help="image paths are relative to it")
    add("--seed", type=int, default=0, help="of a mixture's random choices (default: 0)")
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
    add("--output", type=Path, required=True, help="the records that are kept, a .jsonl file")
    add(
        "--report",
        type=Path,
        help="a .jsonl line for each one removed (default: OUTPUT.removed.jsonl)",
    )
    add("--workers", type=int, default=1, help="processes that decode and hash (default: 1)")
    add("--max-bad-records", type=int, default=0, help="leave out up to this many (default: 0)")
    add("--overwrite", action="store_true", help="replace the output and the report")
    return DeduplicateSettings(**vars(parser.parse_args()))


def main() -> None:
    # Ending by an exception removes the unfinished files and stops the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        settings = parse_arguments()
        summary = deduplicate(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(f"{settings.output}: {summary}")


if __name__ == "__main__":
    main()
