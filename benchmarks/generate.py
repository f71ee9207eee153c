"""How fast answers are generated, against transformers and against computing all rows again.

    python benchmarks/generate.py [--questions 32] [--max-new-tokens 64]

Asks the quickstart's untrained checkpoint held-out questions, each answer as long as allowed, with
the prompts in shared packs and the keys and values kept. The baselines, in the same run and with
the same weights in float32: `generate` of transformers with its cache, a question at a time, as
tools/compare_hf.py asks it; and our own rows computed again for every token. Answers must be equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quickstart_step import make_inputs
from report_header import header

from megatron_llava.platform.device import join_process_group, leave_process_group, set_up_device

Answers = list[tuple[int, ...]]


def timed(function: Callable[[], Answers]) -> tuple[float, Answers]:
    """(seconds, answers)."""
    started = time.perf_counter()
    answers = function()
    return time.perf_counter() - started, answers


def ours(model: Any, settings: Any, prompts: list[Any], tokens: int) -> Answers:
    from megatron_llava.inference.generate import generate

    found = generate(
        model,
        prompts,
        settings,
        max_new_tokens=tokens,
        stop_token_ids=(),
        rows_per_pack=4096,
    )
    return [answer.token_ids for answer in found]


def all_rows_again(model: Any, settings: Any, prompts: list[Any], tokens: int) -> Answers:
    """Every token by a pass over the whole prompt, image and all."""
    answers: Answers = [()] * len(prompts)
    for _ in range(tokens):
        longer = [with_tokens(*both) for both in zip(prompts, answers, strict=True)]
        found = ours(model, settings, longer, 1)
        answers = [old + new for old, new in zip(answers, found, strict=True)]
    return answers


def with_tokens(prompt: Any, answer: Iterable[int]) -> Any:
    ids = np.append(prompt.token_ids, np.array([*answer], prompt.token_ids.dtype))
    return replace(prompt, token_ids=ids, label_mask=np.zeros(len(ids), np.uint8))


@torch.no_grad()
def of_transformers(folder: Any, questions: list[Any], tokens: int) -> Answers:
    answers = []
    for question in questions:
        inputs = folder.inputs(question)
        output = folder.model.generate(
            **inputs, do_sample=False, max_new_tokens=tokens, eos_token_id=-1, pad_token_id=0
        )
        answers.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
    return answers


def measure(folder: Path, count: int, tokens: int) -> list[str]:
    device = set_up_device("cpu")
    from megatron_llava.config.parallel import ParallelConfig
    from megatron_llava.data.visuals import VisualSettings
    from megatron_llava.inference.hf_compare import HFFolder
    from megatron_llava.inference.load import inference_config, load_model
    from megatron_llava.inference.questions import read_questions
    from megatron_llava.parallel.groups import initialize_groups
    from megatron_llava.text.known_templates import get_template
    from megatron_llava.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "hf")
    template = get_template("qwen_1_5", tokenizer)
    visuals = VisualSettings(image_folder=folder / "data", verify=False)
    questions = read_questions(folder / "data" / "train.json", visuals, tokenizer, template)
    questions = questions[:count]
    prompts = [question.prompt for question in questions]
    join_process_group("cpu", timeout_minutes=10)
    initialize_groups(ParallelConfig(device="cpu"))
    root = str(folder / "megatron")
    config = inference_config(root, device=device.type)
    model, settings = load_model(root, config, iteration=None, device=device)
    hf = HFFolder(str(folder / "hf"), device)
    ways: dict[str, Callable[[int], Answers]] = {
        "keys and values kept": lambda n: ours(model, settings, prompts, n),
        "all rows again": lambda n: all_rows_again(model, settings, prompts, n),
        "transformers": lambda n: of_transformers(hf, questions, n),
    }
    found = {}
    for name, way in ways.items():
        way(1)
        found[name] = timed(lambda way=way: way(tokens))
    kept, answers = found["keys and values kept"]
    lines = [
        f"{len(prompts)} questions, {tokens} tokens each",
        "",
        "| | seconds | tokens a second | times as long |",
        "|---|---:|---:|---:|",
    ]
    for name, (seconds, other) in found.items():
        assert other == answers, f"{name}: other answers"
        rate = len(prompts) * tokens / seconds
        lines.append(f"| {name} | {seconds:.2f} | {rate:,.0f} | {seconds / kept:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--output", help="file to write the report to as well")
    arguments = parser.parse_args()
    head = header()
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        try:
            lines = measure(Path(name), arguments.questions, arguments.max_new_tokens)
        finally:
            leave_process_group()
    report = "\n".join([*head, "", *lines])
    print(report)
    if arguments.output:
        Path(arguments.output).write_text(report + "\n")


if __name__ == "__main__":
    main()
