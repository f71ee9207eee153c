"""Answer the questions of a LLaVA JSON file with a Megatron checkpoint, and score the answers."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.config.user_function import load_function
from megatron_llava.data.visual_flags import add_video_flags, visual_settings
from megatron_llava.inference.answered import Answered
from megatron_llava.inference.execution import add_execution_flags, execution_of
from megatron_llava.inference.scorers import SCORERS, YES_NO_SCORERS, scores_by_kind
from megatron_llava.inference.yes_no import check_yes_or_no
from megatron_llava.parallel.checkpoint_directory import latest_iteration
from megatron_llava.platform.device import leave_process_group, select_device, set_up_device
from megatron_llava.platform.job_exit import exit_job, on_first_rank_only
from megatron_llava.platform.torchrun import global_rank, world_size

if TYPE_CHECKING:  # some import megatron-core, before which the device is set up
    from megatron_llava.config.image import ImageSettings
    from megatron_llava.inference.detail import IsDetailed
    from megatron_llava.inference.questions import Question
    from megatron_llava.inference.sampling import Sampling
    from megatron_llava.models.llava import LlavaModel
    from megatron_llava.text.templates import Template
    from megatron_llava.text.tokenizer import Tokenizer


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", required=True, help="root of a Megatron checkpoint")
    parser.add_argument("--base", help="the weights that adapters in --load stand beside")
    parser.add_argument("--ckpt-step", type=int, help="step to load (default: the latest)")
    parser.add_argument(
        "--input",
        required=True,
        help="LLaVA .json or .jsonl; the first question of each record is asked",
    )
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--tokenizer-model", help="default: the hf/ folder of --load")
    parser.add_argument("--conversation-template", required=True)
    parser.add_argument(
        "--scorer",
        default="exact_match",
        choices=list(SCORERS),
        help="what is printed: equal texts, or the measure of a benchmark",
    )
    parser.add_argument("--output", help="JSONL file for the answers; overwritten")
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
    parser.add_argument(
        "--tensor-model-parallel-size",
        type=int,
        default=1,
        help="ranks of torchrun that share a model; models of others answer other questions",
    )
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
    tensor_parallel, ranks = arguments.tensor_model_parallel_size, world_size()
    if tensor_parallel < 1 or ranks % tensor_parallel:
        raise ValueError(
            f"--tensor-model-parallel-size {tensor_parallel} does not divide the {ranks} ranks "
            "that were started: give torchrun --nproc-per-node a multiple of it"
        )
    if tensor_parallel > 1 and arguments.vision_on_cpu:
        raise ValueError(
            f"--vision-on-cpu: the tower of --tensor-model-parallel-size {tensor_parallel} is "
            "shared by GPUs: drop one of them"
        )
    for name in ("max_new_tokens", "rows_per_pack"):
        if (number := getattr(arguments, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number}: must be 1 or more")
    if arguments.output is not None:
        output = Path(arguments.output).absolute()
        if output.is_dir():
            raise ValueError(f"--output {arguments.output} is a folder: name a file in it")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--output {arguments.output}: no folder {output.parent} can be made "
                f"({error.strerror}): name another"
            ) from None
        if not os.access(output if output.exists() else output.parent, os.W_OK):
            raise ValueError(
                f"--output {arguments.output}: nothing can be written there: name another folder"
            )


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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What this rank asks, and how.

    Attributes:
        questions: its share.
        numbers: of them, among those of all ranks.
    """

    questions: list[Question]
    numbers: range
    tokenizer: Tokenizer
    template: Template
    sampling: Sampling
    is_detailed: IsDetailed | None


def asked_by(arguments: argparse.Namespace) -> Asked:
    """Read the questions that this rank's model answers: every so many-th one."""
    from megatron_llava.inference.questions import read_questions
    from megatron_llava.inference.sampling import Sampling
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
    tensor_parallel = arguments.tensor_model_parallel_size
    first, models = global_rank() // tensor_parallel, world_size() // tensor_parallel
    questions = read_questions(
        arguments.input,
        visual_settings(arguments, verify=False),
        tokenizer,
        template,
        blank_images=arguments.blank_images,
        images_in_front=arguments.multi_image_placement == "front",
        share=(first, models),
    )
    if arguments.scorer in YES_NO_SCORERS:
        for question in questions:
            check_yes_or_no(question.truths[0], question.prompt.source)
    return Asked(
        questions=questions,
        numbers=range(first, first + models * len(questions), models),
        tokenizer=tokenizer,
        template=template,
        sampling=sampling,
        is_detailed=is_detailed,
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Generate, write the answers, print scores by kind of question."""
    check(arguments)
    execution, device_type = execution_of(arguments), select_device(arguments.device)
    execution.check(device_type)
    device = set_up_device(device_type)
    from megatron_llava.inference.load import inference_config, load_model
    from megatron_llava.inference.ranks import in_order, join_ranks

    tensor_parallel = arguments.tensor_model_parallel_size
    root, how = arguments.load, {"base": arguments.base, "execution": execution}
    config = inference_config(
        root, device=device.type, bf16=arguments.bf16, tensor_parallel=tensor_parallel, **how
    )
    asked = asked_by(arguments)
    # Until here every error is said before the ranks meet.
    join_ranks(device.type, tensor_parallel)
    model, settings = load_model(root, config, iteration=arguments.ckpt_step, device=device, **how)
    started = time.perf_counter()
    rows = in_order(answered(arguments, asked, model, settings))
    later = sum(in_order([question.later for question in asked.questions]))
    if global_rank() > 0:
        return
    if arguments.output is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(arguments.output).write_text(text, encoding="utf-8")
    print_scores(rows, arguments.scorer)
    print(f"{len(rows)} questions in {time.perf_counter() - started:.1f} s")
    if later:
        print(f"not asked: {later} later questions of their records")


def answered(
    arguments: argparse.Namespace, asked: Asked, model: LlavaModel, settings: ImageSettings
) -> list[dict[str, Any]]:
    """This rank's questions with their answers, as lines of --output."""
    from megatron_llava.inference.detail import groups_by_detail
    from megatron_llava.inference.generate import generate

    questions, template = asked.questions, asked.template
    groups = [(settings, list(range(len(questions))))]
    if arguments.grids_by_kind:
        groups = groups_by_detail(questions, settings, asked.is_detailed)
    rows: list[dict[str, Any]] = [{}] * len(questions)
    for group_settings, places in groups:
        results = generate(
            model,
            [questions[place].prompt for place in places],
            group_settings,
            max_new_tokens=arguments.max_new_tokens,
            stop_token_ids=template.stop_token_ids(asked.tokenizer),
            rows_per_pack=arguments.rows_per_pack,
            sampling=asked.sampling,
            numbers=[asked.numbers[place] for place in places],
        )
        for place, result in zip(places, results, strict=True):
            text = until_stop(asked.tokenizer.decode(result.token_ids), template.stop_strings)
            rows[place] = row_of(questions[place], text)
    return rows


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
    with on_first_rank_only():
        arguments = parse_arguments()
    try:
        evaluate(arguments)
    except (ValueError, OSError) as error:
        exit_job(str(error), "evaluate")
    finally:
        leave_process_group()


if __name__ == "__main__":
    with interruptible():
        main()
