"""One page about a training run, complete in itself."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.config.yaml_file import field_values, read_yaml_mapping
from megatron_llava.observe.report_answers import accuracy_table, answer_figures, read_answers
from megatron_llava.observe.report_charts import chart_figure, charts_of
from megatron_llava.observe.report_style import POLICY, SCRIPT, STYLE
from megatron_llava.observe.report_tables import (
    clock_text,
    columns_table,
    environment_tables,
    settings_tables,
    summary_table,
)
from megatron_llava.observe.run_log import RunLog, read_log, settings_digest
from megatron_llava.parallel.checkpoint_directory import RUN_YAML
from megatron_llava.text.tokenizer import Tokenizer
from megatron_llava.vision.settings import image_settings

if TYPE_CHECKING:
    from megatron_llava.data.sample import SampleStore


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its log, and its settings where the folder of its checkpoints was named."""

    log: RunLog
    config: RunConfig | None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What ``tools/evaluate.py`` wrote.

    Attributes:
        path: the answers; blank: those with greyed images.
        image_folder: where their pictures are.
        number: of the pictures to show.
    """

    path: str
    blank: str | None = None
    image_folder: Path | None = None
    number: int = 24


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The training store, the tokenizer it was made with, and how many samples are shown."""

    store: SampleStore
    tokenizer: Tokenizer
    number: int = 4


def read_run(root: str | Path | None, log_file: str | Path | None) -> Run:
    """A run by the folder that its ``--save`` named, by its log, or by both.

    Args:
        log_file: by default what the run's settings say.

    Raises:
        ValueError: neither is given, a file is missing or damaged, the log tells of no step, or it
            is the log of another run.
    """
    if root is None:
        if log_file is None:
            raise ValueError("a report needs --load (the folder of a run), --log-file, or both")
        return Run(log=_with_steps(read_log(log_file)), config=None)
    path = Path(root) / RUN_YAML
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name with --load what a run's --save named")
    config = RunConfig().with_values(field_values(read_yaml_mapping(str(path)), str(path)), "file")
    named = log_file or config.logging.log_file
    if named is None:
        raise ValueError(f"{path}: the run had no --log-file, so there is nothing to report")
    log = _with_steps(read_log(named))
    _check_same_run(log, config, path)
    return Run(log=log, config=config)


def _with_steps(log: RunLog) -> RunLog:
    if not log.steps:
        raise ValueError(
            f"{log.path}: has no line of a training step; name the --log-file of a run that has "
            "come to its first --log-interval"
        )
    return log


def _check_same_run(log: RunLog, config: RunConfig, path: Path) -> None:
    """Refuse the log of a run with other settings; an older one is known by its length only."""
    digest = settings_digest(path.read_text(encoding="utf-8"))
    if log.starts and digest not in {start.settings for start in log.starts}:
        raise ValueError(
            f"{log.path}: the log of another run than {path}: none of its starts had these "
            "settings; name the log of that run, or leave --load out"
        )
    planned = known(config.training.train_iters)
    if log.last_step > planned:
        raise ValueError(
            f"{log.path}: the log of another run than {path}: it goes to step {log.last_step}, "
            f"--train-iters is {planned}; name the log of that run, or leave "
            "--load out"
        )


def report_page(
    title: str, run: Run, answers: Answers | None = None, samples: Samples | None = None
) -> str:
    """The page as HTML.

    Raises:
        ValueError: one line: damaged answers or pictures, or a store that cannot be shown.
    """
    assert run.config is not None or samples is None, "views of samples need the run's settings"
    parts = dict(_parts(run, answers, samples))
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in parts)
    body = "".join(f'<h2 id="{_anchor(name)}">{name}</h2>{part}' for name, part in parts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="sub">{_subtitle(run)}</p><nav>{links}</nav>{_notes(run)}{body}'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _parts(run: Run, answers: Answers | None, samples: Samples | None) -> Iterator[tuple[str, str]]:
    """The sections by their titles."""
    log, config = run.log, run.config
    store = None if samples is None else samples.store
    yield "Summary", summary_table(log, config, None if store is None else len(store))
    charts = "".join(chart_figure(chart, log) for chart in charts_of(log))
    if any(start.iteration > 0 for start in log.starts):
        charts += "<p>Dashed: the run was resumed there.</p>"
    columns = f"<details><summary>In numbers</summary>{columns_table(log)}</details>"
    yield "Curves", f'<div class="charts">{charts}</div>{columns}'
    if answers is not None:
        rows = read_answers(answers.path)
        blank = None if answers.blank is None else read_answers(answers.blank)
        yield "Held-out exact match", accuracy_table(rows, blank)
        figures = answer_figures(rows, answers.number, answers.image_folder, answers.path)
        yield "Held-out answers", figures
    if samples is not None and config is not None:
        yield "Training samples", _samples(samples, config)
    if config is not None:
        told = "<p>What differs from its default is marked with <b>*</b>.</p>"
        yield "Settings", f"{told}{settings_tables(config)}"
    yield "Environment", environment_tables(log)


def _samples(samples: Samples, config: RunConfig) -> str:
    # It imports Megatron-core, which a report without samples does without.
    from megatron_llava.data.html_view import sample_sections

    indices = spread(len(samples.store), samples.number)
    shown = sample_sections(samples.store, indices, samples.tokenizer, image_settings(config))
    return (
        f"<p>{len(indices)} of {len(samples.store):,} samples, the images as the tower sees them. "
        f"<mark>Marked</mark> text is trained on.</p>{''.join(shown)}"
    )


def spread(number: int, wanted: int) -> Sequence[int]:
    """At most ``wanted`` indices below ``number``, about equally far apart, from the first on."""
    wanted = min(number, wanted)
    return [index * number // wanted for index in range(wanted)]


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _subtitle(run: Run) -> str:
    parts = [f"log <code>{html.escape(str(run.log.path))}</code>"]
    if run.config is not None and run.config.checkpoint.save is not None:
        save = html.escape(run.config.checkpoint.save)
        parts.append(f"checkpoints <code>{save}</code>")
    if run.log.starts:
        parts.append(f"started {html.escape(clock_text(run.log.starts[0].time))}")
    return " &middot; ".join(parts)


def _notes(run: Run) -> str:
    """What a reader has to know to read the numbers right."""
    log, notes = run.log, []
    if log.replaced:
        many = log.replaced > 1
        notes.append(
            f"The run went back to an earlier step: {log.replaced:,} line{'s' if many else ''} of "
            f"the log {'are' if many else 'is'} replaced by what came after."
        )
    if log.torn:
        numbers = ", ".join(f"{number:,}" for number in log.torn)
        notes.append(f"Cut short in the log and left out: line {numbers}.")
    if run.config is None:
        notes.append("The settings are not shown: no folder of the run (--load) was named.")
    elif not log.starts:
        notes.append(
            "The log has no record of a start, so that it belongs to these settings is not checked."
        )
    planned = None if run.config is None else run.config.training.train_iters
    if planned is not None and log.last_step < planned:
        notes.append(f"The log ends at step {log.last_step:,} of {planned:,}.")
    if not notes:
        return ""
    return f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in notes)}</ul>'
