r"""Keep at most so many records of each class, before preprocessing.

python tools/balance_classes.py --input data.json --by source --max-per-class 10000 \
    --output data-balanced.jsonl
"""

import argparse

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.curation.arguments import add_kept, add_records
from megatron_llava.curation.class_balance import MISSING, BalanceSettings, balance_classes


def parse_arguments() -> BalanceSettings:
    parser = argparse.ArgumentParser(
        description="Keep at most so many records of each class, before preprocessing. A class "
        "that is too small gets a weight in a mixture instead."
    )
    add = parser.add_argument
    add_records(parser)
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
    add_kept(parser, "the choice")
    return BalanceSettings(**vars(parser.parse_args()))


def main() -> None:
    def work() -> str:
        settings = parse_arguments()
        lines = balance_classes(settings).lines()
        return "\n".join([f"{settings.output}, by {settings.by}:", *lines])

    run_tool(work)


if __name__ == "__main__":
    main()
