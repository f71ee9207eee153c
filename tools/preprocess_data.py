r"""Make a training store of LLaVA records and their images.

python tools/preprocess_data.py --input data.json --image-folder images --workers 16 \
    --tokenizer-model Qwen2-7B-Instruct --output-prefix stores/data
"""

import argparse
import signal
import sys
from pathlib import Path

from megatron_llava.data.preprocess import PreprocessSettings, preprocess
from megatron_llava.platform.device import silence_core_warnings
from megatron_llava.text.templates import TEMPLATES
from megatron_llava.text.tokenizer import TOKENIZER_TYPES


def parse_arguments() -> PreprocessSettings:
    parser = argparse.ArgumentParser(
        description="Make a training store of LLaVA records and their images."
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, help="records: a .json list or .jsonl lines")
    add("--image-folder", type=Path, required=True, help="image paths are relative to it")
    add("--tokenizer-model", required=True, help="Hugging Face folder or SentencePiece .model")
    add("--tokenizer-type", default="auto", choices=TOKENIZER_TYPES)
    add(
        "--conversation-template",
        default="qwen_1_5",
        help=f"one of {', '.join(TEMPLATES)} (default: qwen_1_5)",
    )
    add(
        "--output-prefix",
        type=Path,
        required=True,
        help="writes PREFIX.json, PREFIX_tokens.bin, ...",
    )
    add("--workers", type=int, default=1, help="processes that read and tokenise (default: 1)")
    add("--max-bad-records", type=int, default=0, help="skip up to this many (default: 0)")
    add("--overwrite", action="store_true", help="replace the store at the output prefix")
    return PreprocessSettings(**vars(parser.parse_args()))


def main() -> None:
    settings = parse_arguments()
    silence_core_warnings()
    # Ending by an exception removes the unfinished store and stops the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        summary = preprocess(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(f"{settings.output_prefix}: {summary}")


if __name__ == "__main__":
    main()
