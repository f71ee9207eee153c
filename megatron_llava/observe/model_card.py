"""A model card of a model and the runs that made it, in the tables of LLaVA-NeXT's cards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import TUNABLE_PARTS, part_of
from megatron_llava.config.yaml_file import field_values, read_yaml_mapping
from megatron_llava.observe.parameters import part_parameters
from megatron_llava.observe.run_log import LOSSES, read_log, total
from megatron_llava.parallel.checkpoint_directory import RUN_YAML
from megatron_llava.vision.settings import image_settings

_NAMES = {
    "mm_vision_tower": "Vision encoder",
    "mm_mlp_adapter": "Connector",
    "mm_language_model": "LLM",
}

_NOTICE = """## Licences
Data, towers and language models keep the licences that they were published under. Whoever uses this
model has to keep to those of all that it was made from, among them the terms of services whose
answers are in the training data."""


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        config: its settings.
        steps: records of its log by the step that they end with, of a resumed run each step once.
        counts: what its training store counts; None where the store is not there any more.
        before: steps done before the log begins.
    """

    config: RunConfig
    steps: dict[int, dict[str, Any]]
    counts: dict[str, int] | None
    before: int = 0

    @property
    def last_step(self) -> int:
        """0 without a log."""
        return max(self.steps, default=0)

    def total(self, per_second: str | None = None) -> float:
        """As ``run_log.total`` of these steps."""
        return total(self.steps, per_second, self.before)


def read_stage(root: str | Path, log_file: str | Path | None = None) -> Stage:
    """A run by the folder that its ``--save`` named.

    Args:
        log_file: what its ``--log-file`` named; by default what the run's settings say, if it is
            there.

    Raises:
        ValueError: no run.yaml there, or a file that is damaged.
    """
    path = Path(root) / RUN_YAML
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a folder that a run saved checkpoints to")
    values = field_values(read_yaml_mapping(str(path)), str(path))
    config = RunConfig().with_values(values, "file")
    named = log_file or config.logging.log_file
    counts = _counts(config.data.data_path)
    if named is not None and Path(named).is_file():
        log = read_log(named)
        return Stage(config, log.steps, counts, log.first_start)
    if log_file is not None:
        raise ValueError(f"{log_file}: no such file")
    return Stage(config, {}, counts)


def _counts(data_path: str | None) -> dict[str, int] | None:
    manifest = Path(f"{data_path}.json")
    if data_path is None or not manifest.is_file():
        return None
    counts: dict[str, int] = json.loads(manifest.read_text(encoding="utf-8"))["counts"]
    return counts


def model_card(name: str, stages: Sequence[Stage], gpus: Sequence[str] = ()) -> str:
    """The card as Markdown.

    Args:
        stages: in the order of training, at least one; the model is the last one's.
        gpus: of each stage, such as ``8 A100-80G``; where they are given, GPU hours are told.
    """
    config = stages[-1].config
    rows = [*_architecture(config), *_views(config)]
    for number, stage in enumerate(stages, start=1):
        machine = gpus[number - 1] if gpus else None
        rows += [(f"Stage-{number}", key, text) for key, text in _stage(stage, machine)]
    seen = [round(stage.total("samples/s")) for stage in stages]
    if all(seen):
        parts = f" = {' + '.join(map(count_text, seen))}" if len(seen) > 1 else ""
        rows.append(("Training data", "# samples seen", count_text(sum(seen)) + parts))
    table = "\n".join(f"| {section} | {key} | {text} |" for section, key, text in rows)
    return f"# {name}\n\n| Section | Key | Value |\n|---|---|---|\n{table}\n\n{_NOTICE}\n"


def _architecture(config: RunConfig) -> Iterable[tuple[str, str, str]]:
    vision, language = config.vision, config.language
    sizes = part_sizes(config)
    side = known(vision.vision_image_size)
    yield (
        "Architecture",
        "Image encoder",
        f"{vision.vision_model_type}, {vision.vision_num_layers} layers of "
        f"{vision.vision_hidden_size} ({side}x{side}, patches of {vision.vision_patch_size})",
    )
    yield "Architecture", "Connector", str(vision.mm_projector_type)
    yield (
        "Architecture",
        "LLM",
        f"{language.num_layers} layers of {language.hidden_size}, {language.num_attention_heads} "
        f"heads, vocabulary of {language.vocab_size:,}",
    )
    yield "Model size", "Total", count_text(sum(sizes.values()))
    for part, size in sizes.items():
        yield "Model size", _NAMES[part], count_text(size)


def part_sizes(config: RunConfig) -> dict[str, int]:
    """Parameters of the whole tower, the projector and everything else, as published: with layers
    of the tower that are not used, without padding of the vocabulary and adapters."""
    single = {
        "tensor_model_parallel_size": 1,
        "make_vocab_size_divisible_by": 1,
        "mm_vision_select_layer": -1,
        "lora_rank": 0,
    }
    config = config.with_values(single, "default")
    layers = known(config.language.num_layers)
    sizes = dict.fromkeys(("mm_vision_tower", "mm_mlp_adapter", "mm_language_model"), 0)
    for parameter in part_parameters(config, layers=layers, first=True, last=True):
        sizes[part_of(parameter.name)] += parameter.numel
    return sizes


def _views(config: RunConfig) -> Iterable[tuple[str, str, str]]:
    settings = image_settings(config)
    pattern = settings.image_aspect_ratio
    if settings.grid_pinpoints:
        side = settings.tile_size
        grids = [f"({width // side},{height // side})" for width, height in settings.grid_pinpoints]
        pattern += f": {side} x [{', '.join(grids)}], columns and rows"
    yield "Visual representations", "Pattern", pattern
    yield "Visual representations", "Tokens per view", str(settings.tokens_per_view)
    yield "Visual representations", "Merge", settings.mm_patch_merge_type


def _stage(stage: Stage, machine: str | None) -> Iterable[tuple[str, str]]:
    config = stage.config
    if stage.counts is not None:
        counts = stage.counts
        yield (
            "Training data",
            f"{count_text(counts['samples'])} samples, {count_text(counts['images'])} images, "
            f"{count_text(counts['supervised_tokens'])} supervised tokens",
        )
    yield "Trainable module", trainable_module(config)
    yield "Learning rate", _learning_rates(config)
    batch, length = config.training.global_batch_size, f"{config.data.seq_length:,} positions"
    yield (
        "Batch size",
        f"1 pack of {length} per data-parallel rank"
        if batch is None
        else f"{batch} packs of {length}",
    )
    steps = stage.last_step or config.training.train_iters
    yield "Steps", f"{steps:,}" + ("" if stage.steps else " (planned)")
    if stage.steps:
        yield "Samples seen", count_text(round(stage.total("samples/s")))
        last = stage.steps[stage.last_step]
        yield "Last loss", f"{next(last[name] for name in LOSSES if name in last)}"
        if machine is not None:
            yield "Compute (GPUs x hours)", f"{machine} x {stage.total() / 3600:.1f}"
    half = "bfloat16" if config.precision.bf16 else "float16"
    yield "Precision", half if config.precision.is_half else "float32"


def trainable_module(config: RunConfig) -> str:
    """The parts that learn, in the words of LLaVA-NeXT's cards."""
    parts = config.training.mm_tunable_parts
    names = {**_NAMES}
    if config.lora.adapts:
        names["mm_language_model"] = f"adapters of the LLM (rank {config.lora.lora_rank})"
    elif set(parts) == set(TUNABLE_PARTS):
        return "Full model"
    return ", ".join(text for part, text in names.items() if part in parts)


def _learning_rates(config: RunConfig) -> str:
    optimizer, parts = config.optimizer, config.training.mm_tunable_parts
    rates = {
        "mm_language_model": optimizer.lr,
        "mm_mlp_adapter": optimizer.mm_projector_lr,
        "mm_vision_tower": optimizer.mm_vision_tower_lr,
    }
    learning: dict[float | None, list[str]] = {}
    for part, rate in rates.items():
        if part in parts:
            learning.setdefault(optimizer.lr if rate is None else rate, []).append(_NAMES[part])
    if len(learning) == 1:
        return f"{next(iter(learning)):g}"
    return " / ".join(f"{', '.join(names)}: {rate:g}" for rate, names in learning.items())


def count_text(number: float) -> str:
    """A count in few characters: with a letter behind three digits or more."""
    for letter, unit in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= unit:
            return f"{number / unit:.{2 if number < 100 * unit else 1}f}{letter}"
    return f"{number:,}"
