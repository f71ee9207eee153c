r"""Keep records whose captions are drawn for an entry that they hold, as MetaCLIP does.

python tools/balance_captions.py sample --input data.jsonl --entries entries.json \
    --output balanced.jsonl

In shards, each of the two passes in parallel:

for i in 0 1 2 3; do python tools/balance_captions.py count --shard $i/4 --counts counts ... & done
wait
for i in 0 1 2 3; do python tools/balance_captions.py sample --shard $i/4 --counts counts \
    --output balanced-$i.jsonl ... & done
"""

import argparse
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.curation.balance_captions import (
    SampleSettings,
    count_captions,
    sample_captions,
)
from megatron_llava.curation.captions import CaptionSettings


def shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N such as 0/8")
    return int(number), int(count)


def add_caption_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        required=True,
        help="records of .json or .jsonl, as tools/preprocess_data.py reads them",
    )
    add("--data-root", type=Path, help="relative paths in a mixture are relative to it")
    add(
        "--caption-key",
        metavar="NAME",
        help="the field that is the caption (default: the answers of the conversation)",
    )
    add("--entries", type=Path, required=True, help="a JSON list, or a text file of one a line")
    add("--seed", type=int, default=0, help="of all random choices (default: 0)")
    add(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="only share I of N, from 0; both passes may have different N",
    )
    add("--overwrite", action="store_true", help="replace what is there")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    passes = parser.add_subparsers(dest="which", required=True, metavar="count|sample")
    count = passes.add_parser("count", help="count the captions that hold each entry")
    add_caption_flags(count)
    count.add_argument(
        "--counts",
        type=Path,
        required=True,
        metavar="PREFIX",
        help="writes PREFIX-0000I-of-0000N.npz",
    )
    sample = passes.add_parser("sample", help="write the records that stay")
    add_caption_flags(sample)
    sample.add_argument(
        "--counts",
        type=Path,
        metavar="PREFIX",
        help="the counts of all shards (default: count first, needs one shard)",
    )
    sample.add_argument("--output", type=Path, required=True, help="a .jsonl file")
    sample.add_argument(
        "--max-per-entry",
        type=int,
        default=20_000,
        metavar="T",
        help="an entry in C captions is drawn for each with probability min(1, T / C); MetaCLIP "
        "has 20000 for 400 million captions, 170000 for 2.5 billion (default: 20000)",
    )
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> str:
    """Do what is asked; what became of it, in words."""
    names = CaptionSettings.__dataclass_fields__
    settings = CaptionSettings(**{name: getattr(arguments, name) for name in names})
    if arguments.which == "count":
        path, records, counts = count_captions(
            settings, arguments.entries, arguments.counts, overwrite=arguments.overwrite
        )
        return f"{path}: {records:,} captions, {counts.matched:,} of them hold an entry"
    sampling = SampleSettings(
        counts=arguments.counts,
        output=arguments.output,
        max_per_entry=arguments.max_per_entry,
        overwrite=arguments.overwrite,
    )
    summary = sample_captions(settings, arguments.entries, sampling)
    return f"{summary}\n{sampling.output}: written"


def main() -> None:
    run_tool(lambda: run(parse_arguments()))


if __name__ == "__main__":
    main()
