r"""Keep the records with the highest values of a field, before preprocessing.

python tools/select_top.py --input web.jsonl --by quality.score --count 600000 --output top.jsonl
"""

import argparse

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.curation.arguments import add_kept, add_records
from megatron_llava.curation.top_records import MISSING, TopSettings, select_top


def parse_arguments() -> TopSettings:
    parser = argparse.ArgumentParser(
        description="Keep the records with the highest values of a field, before preprocessing. As "
        "many random ones to compare with are sampling_strategy: random:N in a mixture."
    )
    add = parser.add_argument
    add_records(parser)
    add("--by", required=True, metavar="FIELD", help="the key of the value, as in quality.score")
    add("--count", type=int, required=True, metavar="N", help="records to keep")
    add(
        "--missing",
        choices=MISSING,
        default="error",
        help="records without the field: an error, or drop them (default: error)",
    )
    add_kept(parser, "random entries of a mixture")
    return TopSettings(**vars(parser.parse_args()))


def main() -> None:
    def work() -> str:
        settings = parse_arguments()
        return f"{settings.output}, by {settings.by}: {select_top(settings)}"

    run_tool(work)


if __name__ == "__main__":
    main()
