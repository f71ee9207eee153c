"""Answer the questions of a LLaVA JSON file with a Megatron checkpoint, and score the answers."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_llava.config.cli import exit_with_error
from megatron_llava.config.user_function import load_function
from megatron_llava.data.visual_flags import add_video_flags, visual_settings
from megatron_llava.inference.answered import Answered
from megatron_llava.inference.execution import add_execution_flags, execution_of
from megatron_llava.inference.scorers import SCORERS, scores_by_kind
from megatron_llava.parallel.checkpoint_directory import latest_iteration
from megatron_llava.platform.device import (
    join_process_group,
    leave_process_group,
    select_device,
    set_up_device,
)

if TYPE_CHECKING:  # it imports megatron-core, before which the device is set up
    from megatron_llava.inference.questions import Question


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", required=True, help="root of a Megatron checkpoint")
    parser.add_argument("--base", help="the weights that adapters in --load stand beside")
    parser.add_argument("--ckpt-step", type=int, help="step to load (default: the latest)")
    parser.add_argument("--input", required=True, help="LLaVA .json or .jsonl with the questions")
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--tokenizer-model", help="default: the hf/ folder of --load")
    parser.add_argument("--conversation-template", required=True)
    parser.add_argument(
        "--scorer",
        default="exact_match",
        choices=list(SCORERS),
        help="what is printed: equal texts, or the measure of a benchmark",
    )
    parser.add_argument("--output", help="JSONL file for the answers")
    parser.add_argument("--blank-images", action="store_true", help="grey out every image")
    parser.add_argument(
        "--multi-image-placement",
        choices=("interleaved", "front"),
        default="interleaved",
        help="several images of a question: among its words as written, or all in front of it",
    )
    parser.add_argument(
        "--grids-by-kind",
        action="store_true",
        help="grids of up to 6 tiles for kinds ocr, text_vqa and document, 2 for classification, "
        "4 for others",
    )
    parser.add_argument(
        "--is-detailed",
        metavar="MODULE:FUNCTION",
        help="with --grids-by-kind: takes a PIL image of another kind, and true means 6 tiles",
    )
    add_video_flags(parser)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from this probability")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--rows-per-pack", type=int, default=4096)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--bf16", action="store_true")
    add_execution_flags(parser)
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for what would otherwise be found after the answers."""
    if arguments.ckpt_step is None and latest_iteration(arguments.load) is None:
        raise ValueError(f"--load {arguments.load} holds no checkpoint")
    if arguments.is_detailed is not None and not arguments.grids_by_kind:
        raise ValueError(f"--is-detailed {arguments.is_detailed} needs --grids-by-kind: add it")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}: must be 1 or more")
    if arguments.output is not None:
        output = Path(arguments.output).absolute()
        if output.is_dir():
            raise ValueError(f"--output {arguments.output} is a folder: name a file in it")
        if not os.access(output if output.exists() else output.parent, os.W_OK):
            raise ValueError(f"--output {arguments.output}: nothing can be written there")


def shown(name: str, value: float) -> str:
    """A measure as it is printed; that of exact match has no need of a name."""
    if name == "score":
        return f"{value:7.1f} points"
    return f"{100 * value:6.1f} %" + ("" if name == "exact match" else f" {name}")


def until_stop(text: str, stop_strings: tuple[str, ...]) -> str:
    """The answer before the first stop string, for ends that are no single token."""
    for stop in stop_strings:
        text = text.split(stop)[0]
    return text.strip()


def row_of(question: Question, answer: str) -> dict[str, Any]:
    """A line of --output."""
    return {
        "id": question.id,
        "kind": question.kind,
        "image": question.images[0] if question.images else None,
        "question": question.text,
        "answer": answer,
        "truth": question.truths[0],
        "truths": list(question.truths),
    }


def evaluate(arguments: argparse.Namespace) -> None:
    """Generate, write the answers, print scores by kind of question."""
    check(arguments)
    execution, device_type = execution_of(arguments), select_device(arguments.device)
    execution.check(device_type)
    device = set_up_device(device_type)
    from megatron_llava.config.parallel import ParallelConfig
    from megatron_llava.inference.detail import groups_by_detail
    from megatron_llava.inference.generate import generate
    from megatron_llava.inference.load import load_model
    from megatron_llava.inference.questions import read_questions
    from megatron_llava.inference.sampling import Sampling
    from megatron_llava.parallel.groups import initialize_groups
    from megatron_llava.text.known_templates import get_template
    from megatron_llava.text.tokenizer import load_tokenizer

    sampling = Sampling(
        **{field.name: getattr(arguments, field.name) for field in fields(Sampling)}
    )
    name = arguments.is_detailed
    is_detailed = None if name is None else load_function("--is-detailed", name)
    tokenizer = load_tokenizer(arguments.tokenizer_model or Path(arguments.load) / "hf")
    template = get_template(arguments.conversation_template, tokenizer)
    template.check_tokenizer(tokenizer)
    questions = read_questions(
        arguments.input,
        visual_settings(arguments, verify=False),
        tokenizer,
        template,
        blank_images=arguments.blank_images,
        images_in_front=arguments.multi_image_placement == "front",
    )
    join_process_group(device.type, timeout_minutes=10)
    initialize_groups(ParallelConfig(device=device.type))
    model, settings = load_model(
        arguments.load,
        iteration=arguments.ckpt_step,
        device=device,
        bf16=arguments.bf16,
        base=arguments.base,
        execution=execution,
    )
    started = time.perf_counter()
    groups = [(settings, list(range(len(questions))))]
    if arguments.grids_by_kind:
        groups = groups_by_detail(questions, settings, is_detailed)
    answers = [""] * len(questions)
    for group_settings, numbers in groups:
        results = generate(
            model,
            [questions[number].prompt for number in numbers],
            group_settings,
            max_new_tokens=arguments.max_new_tokens,
            stop_token_ids=template.stop_token_ids(tokenizer),
            rows_per_pack=arguments.rows_per_pack,
            sampling=sampling,
        )
        for number, result in zip(numbers, results, strict=True):
            text = tokenizer.decode(result.token_ids)
            answers[number] = until_stop(text, template.stop_strings)
    rows = [row_of(*both) for both in zip(questions, answers, strict=True)]
    if arguments.output is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(arguments.output).write_text(text, encoding="utf-8")
    print_scores(rows, arguments.scorer)
    print(f"{len(rows)} questions in {time.perf_counter() - started:.1f} s")


def print_scores(rows: list[dict[str, Any]], scorer: str) -> None:
    """A line for each kind of question, and one for all."""
    answered = [
        Answered(
            kind=row["kind"], image=row["image"], answer=row["answer"], truths=tuple(row["truths"])
        )
        for row in rows
    ]
    for kind, measures in scores_by_kind(answered, SCORERS[scorer]).items():
        print(f"{kind:<24}" + "  ".join(shown(*measure) for measure in measures.items()))


def main() -> None:
    arguments = parse_arguments()
    try:
        evaluate(arguments)
    except ValueError as error:
        exit_with_error(str(error), "evaluate")
    finally:
        leave_process_group()


if __name__ == "__main__":
    main()
