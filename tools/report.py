r"""Write one HTML page about a training run, from its log, its settings, its data and its answers.

python tools/report.py --load checkpoints/run --output report.html
python tools/report.py --load checkpoints/run --data-path stores/data --answers answers.jsonl \
    --blank-answers blank.jsonl --image-folder images --output report.html
"""

import argparse
import sys
from pathlib import Path

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.observe.report_page import Answers, Samples, read_run, report_page
from megatron_llava.platform.device import silence_core_warnings
from megatron_llava.text.tokenizer import TOKENIZER_TYPES, load_tokenizer


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write one HTML page about a training run: curves of every column of its log, "
        "a summary, settings, environment, and where they are named samples and answers. The page "
        "holds all that it shows."
    )
    add = parser.add_argument
    add("--load", metavar="FOLDER", help="what --save named in the run; its run.yaml is read")
    add("--log-file", metavar="FILE", help="of the run (default: what its settings name)")
    add("--data-path", metavar="PREFIX", help="a store, to show samples of; needs --load")
    add("--samples", type=int, default=4, metavar="N", help="of the store (default: 4)")
    add("--tokenizer-model", help="of the store (default: the hf/ folder of --load)")
    add("--tokenizer-type", default="auto", choices=TOKENIZER_TYPES, help="kind of tokenizer")
    add("--answers", metavar="FILE", help="what tools/evaluate.py --output named")
    add("--blank-answers", metavar="FILE", help="the same with --blank-images")
    add("--image-folder", type=Path, help="where the pictures of the answers are")
    add("--examples", type=int, default=24, metavar="N", help="answers to show (default: 24)")
    add("--title", default="Training report", help="of the page (default: Training report)")
    add("--output", type=Path, required=True, help="the HTML file to write")
    add("--overwrite", action="store_true", help="replace it")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not fit together."""
    for flag, number in (("--samples", arguments.samples), ("--examples", arguments.examples)):
        if number < 1:
            raise ValueError(f"{flag} {number}: must be 1 or more")
    if arguments.data_path is not None and arguments.load is None:
        raise ValueError("--data-path needs --load, whose run.yaml says how images are seen")
    if arguments.blank_answers is not None and arguments.answers is None:
        raise ValueError("--blank-answers needs --answers to be compared with")
    if arguments.output.exists() and not arguments.overwrite:
        raise ValueError(f"--output {arguments.output} exists: give --overwrite, or another")


def page(arguments: argparse.Namespace) -> str:
    """The page that the flags ask for."""
    run = read_run(arguments.load, arguments.log_file)
    answers = samples = None
    if arguments.answers is not None:
        answers = Answers(
            path=arguments.answers,
            blank=arguments.blank_answers,
            image_folder=arguments.image_folder,
            number=arguments.examples,
        )
    if arguments.data_path is not None:
        # Before Megatron-core is imported, which says what it did not find.
        silence_core_warnings()
        from megatron_llava.data.merged_store import open_store

        model = arguments.tokenizer_model or Path(arguments.load) / "hf"
        samples = Samples(
            store=open_store(arguments.data_path),
            tokenizer=load_tokenizer(model, arguments.tokenizer_type),
            number=arguments.samples,
        )
    return report_page(arguments.title, run, answers, samples)


def main() -> None:
    arguments = parse_arguments()
    try:
        check(arguments)
        # What is no character, such as half a surrogate pair in an answer, is shown as unknown.
        data = page(arguments).encode("utf-8", "xmlcharrefreplace")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_bytes(data)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {arguments.output} ({len(data) / 1e6:.2f} MB)")


if __name__ == "__main__":
    with interruptible():
        main()
