"""Ask transformers the questions that a Megatron checkpoint answered, from its exported folder."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from megatron_llava.config.cli import exit_with_error
from megatron_llava.config.tool_exit import interruptible
from megatron_llava.data.visuals import VisualSettings
from megatron_llava.platform.device import (
    join_process_group,
    leave_process_group,
    select_device,
    set_up_device,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", required=True, help="root of the Megatron checkpoint")
    parser.add_argument("--hf", required=True, help="Hugging Face folder exported from it")
    parser.add_argument("--input", required=True, help="LLaVA .json or .jsonl with the questions")
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--conversation-template", required=True)
    parser.add_argument("--answers", required=True, help="JSONL that tools/evaluate.py wrote")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the logits, in float32")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    return parser.parse_args()


def read_answers(path: str) -> list[str]:
    """The answers that tools/evaluate.py wrote; ValueError where it did not."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["answer"] for line in lines]
    except OSError as error:
        raise ValueError(f"--answers {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--answers {path}: not what tools/evaluate.py writes") from None


def compare(arguments: argparse.Namespace) -> None:
    """Compare every question; ValueError where an answer or a logit differs."""
    device = set_up_device(select_device(arguments.device))
    from megatron_llava.config.parallel import ParallelConfig
    from megatron_llava.inference.hf_compare import HFFolder, compare_question
    from megatron_llava.inference.load import inference_config, load_model
    from megatron_llava.inference.questions import read_questions
    from megatron_llava.parallel.groups import initialize_groups
    from megatron_llava.text.known_templates import get_template
    from megatron_llava.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(arguments.load) / "hf")
    template = get_template(arguments.conversation_template, tokenizer)
    questions = read_questions(
        arguments.input,
        VisualSettings(image_folder=Path(arguments.image_folder), verify=False),
        tokenizer,
        template,
    )
    answers = read_answers(arguments.answers)
    if len(answers) != len(questions):
        raise ValueError(
            f"--answers {arguments.answers} has {len(answers)} answers, --input {len(questions)} "
            "questions: run tools/evaluate.py again"
        )
    config = inference_config(arguments.load, device=device.type)
    join_process_group(device.type, timeout_minutes=10)
    initialize_groups(ParallelConfig(device=device.type))
    model, settings = load_model(arguments.load, config, iteration=None, device=device)
    hf = HFFolder(arguments.hf, device)
    started, same, largest = time.perf_counter(), 0, 0.0
    for question, answer in zip(questions, answers, strict=True):
        result = compare_question(
            question, model, settings, hf, tokenizer, arguments.max_new_tokens
        )
        same += result.answer == answer
        largest = max(largest, result.max_difference)
    seconds = time.perf_counter() - started
    print(f"same greedy answers: {same} of {len(questions)}")
    print(f"largest difference of a logit: {largest:.2e} (float32, every position of every prompt)")
    print(f"{seconds:.1f} s")
    if same < len(questions) or largest > arguments.tolerance:
        raise ValueError(
            f"{len(questions) - same} answers differ and the largest logit difference is "
            f"{largest:.2e}, over --tolerance {arguments.tolerance:g} or not"
        )


def main() -> None:
    arguments = parse_arguments()
    try:
        compare(arguments)
    except ValueError as error:
        exit_with_error(str(error), "compare_hf")
    finally:
        leave_process_group()


if __name__ == "__main__":
    with interruptible():
        main()
