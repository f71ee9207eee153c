r"""Make a training store of LLaVA records and their images.

python tools/preprocess_data.py --input data.json --image-folder images --workers 16 \
    --tokenizer-model Qwen2-7B-Instruct --output-prefix stores/data
"""

import argparse
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.data.preprocess import PreprocessSettings, preprocess
from megatron_llava.data.quality import add_quality_flags
from megatron_llava.data.visual_flags import add_video_flags
from megatron_llava.platform.device import silence_core_warnings
from megatron_llava.text.known_templates import TEMPLATES
from megatron_llava.text.tokenizer import TOKENIZER_TYPES


def shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N such as 0/8")
    return int(number), int(count)


def parse_arguments() -> PreprocessSettings:
    parser = argparse.ArgumentParser(
        description="Make a training store of LLaVA records and their images."
    )
    add_places(parser)
    add_choices(parser)
    return PreprocessSettings(**vars(parser.parse_args()))


def add_places(parser: argparse.ArgumentParser) -> None:
    """What is read with which tokenizer and template, and where the store goes."""
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        required=True,
        help="records: a .json list, .jsonl lines, .parquet, a WebDataset .tar, a folder of the "
        "Hub or of datasets' save_to_disk, {a,b}, {00..99} or * in the name, or a .yaml mixture",
    )
    add("--data-root", type=Path, help="relative paths in a mixture are relative to it")
    add(
        "--image-folder",
        type=Path,
        help="image paths are relative to it; not needed where the records hold their images",
    )
    add_video_flags(parser)
    add("--tokenizer-model", required=True, help="Hugging Face folder or SentencePiece .model")
    add("--tokenizer-type", default="auto", choices=TOKENIZER_TYPES)
    add(
        "--conversation-template",
        default="qwen_1_5",
        help=f"one of {', '.join(TEMPLATES)}; prefix, BOS, image, caption and EOS; or hf, the "
        "tokenizer's own (default: qwen_1_5)",
    )
    add(
        "--output-prefix",
        type=Path,
        required=True,
        help="writes PREFIX.json, PREFIX_tokens.bin, ...",
    )


def add_choices(parser: argparse.ArgumentParser) -> None:
    """How records become samples, and which of them."""
    add = parser.add_argument
    add("--workers", type=int, default=1, help="processes that read and tokenise (default: 1)")
    add("--max-bad-records", type=int, default=0, help="skip up to this many (default: 0)")
    add(
        "--label-compat",
        choices=("none", "llava"),
        default="none",
        help="llava: train the headers and special tokens that LLaVA-NeXT trains (default: none)",
    )
    add(
        "--verify-images",
        choices=("full", "header"),
        default="full",
        help="decode every image once to find damaged ones, or read headers only (default: full)",
    )
    add(
        "--multi-image-placement",
        default="interleaved",
        metavar="HOW",
        help="several images: interleaved as written, front, or mixed:S for a share S in front "
        "(default: interleaved)",
    )
    add("--seed", type=int, default=0, help="of random choices (default: 0)")
    add(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="only share I of N, from 0; tools/merge_data.py makes one store of all",
    )
    add(
        "--split-turns",
        type=int,
        default=0,
        metavar="N",
        help="make several samples of a conversation of more than N questions, each with the "
        "images of the first one (default: 0, off)",
    )
    add_quality_flags(parser)
    add(
        "--drop-exact-duplicates",
        action="store_true",
        help="keep the first of the records with the same tokens and the same image files",
    )
    add("--overwrite", action="store_true", help="replace the store at the output prefix")


def main() -> None:
    silence_core_warnings()

    def work() -> str:
        settings = parse_arguments()
        return f"{settings.output_prefix}: {preprocess(settings)}"

    run_tool(work)


if __name__ == "__main__":
    main()
