r"""Keep at most so many records of each class, before preprocessing.

python tools/balance_classes.py --input data.json --by source --max-per-class 10000 \
    --output data-balanced.jsonl
"""

import argparse
import signal
import sys
from pathlib import Path

from megatron_llava.curation.class_balance import MISSING, BalanceSettings, balance_classes


def parse_arguments() -> BalanceSettings:
    parser = argparse.ArgumentParser(
        description="Keep at most so many records of each class, before preprocessing. A class "
        "that is too small gets a weight in a mixture instead."
    )
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        required=True,
        help="records: .json, .jsonl, {a,b}, {00..99} or * in the name, or a .yaml mixture of them",
    )
    add("--data-root", type=Path, help="relative paths in a mixture are relative to it")
    add(
        "--by", required=True, metavar="FIELD", help="the key that names the class, as in meta.kind"
    )
    add("--max-per-class", type=int, required=True, metavar="N", help="records of one class")
    add(
        "--missing",
        choices=MISSING,
        default="error",
        help="records without the field: an error, keep all, or drop all (default: error)",
    )
    add("--seed", type=int, default=0, help="of the choice (default: 0)")
    add("--output", type=Path, required=True, help="the records that are kept, a .jsonl file")
    add("--overwrite", action="store_true", help="replace the output")
    return BalanceSettings(**vars(parser.parse_args()))


def main() -> None:
    # Ending by an exception removes the unfinished file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        settings = parse_arguments()
        summary = balance_classes(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print("\n".join([f"{settings.output}, by {settings.by}:", *summary.lines()]))


if __name__ == "__main__":
    main()
