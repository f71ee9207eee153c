r"""Keep the records with the highest values of a field, before preprocessing.

python tools/select_top.py --input web.jsonl --by quality.score --count 600000 --output top.jsonl
"""

import argparse
import signal
import sys
from pathlib import Path

from megatron_llava.curation.top_records import MISSING, TopSettings, select_top


def parse_arguments() -> TopSettings:
    parser = argparse.ArgumentParser(
        description="Keep the records with the highest values of a field, before preprocessing. As "
        "many random ones to compare with are sampling_strategy: random:N in a mixture."
    )
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        required=True,
        help="records: .json, .jsonl, {a,b}, {00..99} or * in the name, or a .yaml mixture of them",
    )
    add("--data-root", type=Path, help="relative paths in a mixture are relative to it")
    add("--by", required=True, metavar="FIELD", help="the key of the value, as in quality.score")
    add("--count", type=int, required=True, metavar="N", help="records to keep")
    add(
        "--missing",
        choices=MISSING,
        default="error",
        help="records without the field: an error, or drop them (default: error)",
    )
    add("--seed", type=int, default=0, help="of random entries of a mixture (default: 0)")
    add("--output", type=Path, required=True, help="the records that are kept, a .jsonl file")
    add("--overwrite", action="store_true", help="replace the output")
    return TopSettings(**vars(parser.parse_args()))


def main() -> None:
    # Ending by an exception removes the unfinished file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        settings = parse_arguments()
        summary = select_top(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(f"{settings.output}, by {settings.by}: {summary}")


if __name__ == "__main__":
    main()
