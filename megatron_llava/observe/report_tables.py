"""The tables of a report: summary, columns of the log, settings, environment."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from megatron_llava.config.fields import FieldSpec
from megatron_llava.config.run import RunConfig, all_fields, group_classes
from megatron_llava.data.sample_kinds import KIND_COLUMNS
from megatron_llava.observe.model_card import count_text, part_sizes, trainable_module
from megatron_llava.observe.report_scale import number_text
from megatron_llava.observe.run_log import LOSSES, RunLog, total

_VALID_LOSS = "valid loss"
# From here on a total is told with a letter.
_EXACT = 10_000_000


def summary_table(log: RunLog, config: RunConfig | None, samples: int | None) -> str:
    """What came of the run, in a few rows.

    Args:
        config: its settings, where they are known.
        samples: of its training store, where it is known.
    """
    rows = [*_progress(log, config), *_losses(log), *_speeds(log), *_totals(log, samples)]
    if config is not None:
        learns = html.escape(f"learns: {trainable_module(config)}")
        rows.append(("parameters", count_text(sum(part_sizes(config).values())), learns))
    cells = "".join(
        f"<tr><th>{name}</th><td>{value}</td><td>{note}</td></tr>" for name, value, note in rows
    )
    return f'<div class="wide"><table class="summary">{cells}</table></div>'


def _progress(log: RunLog, config: RunConfig | None) -> Iterator[tuple[str, str, str]]:
    planned = "" if config is None else f"of {config.training.train_iters:,} planned"
    yield "steps", f"{log.last_step:,}", planned
    resumed = sum(start.iteration > 0 for start in log.starts)
    if resumed:
        yield "resumed", f"{resumed:,} times" if resumed > 1 else "once", ""
    skipped = log.finite("skipped steps")
    if skipped:
        yield "skipped steps", f"{skipped[-1]:,.0f}", "not finite, or a spike of the loss"


def _losses(log: RunLog) -> Iterator[tuple[str, str, str]]:
    for name in (*LOSSES, _VALID_LOSS):
        values = {step: v for step, v in log.columns.get(name, {}).items() if v is not None}
        if not values:
            continue
        step = min(values, key=lambda step: values[step])
        last = max(values)
        yield (
            f"final {name}",
            f"{values[last]:.4f}",
            f"at step {last:,}; lowest {values[step]:.4f} at step {step:,}",
        )


def _speeds(log: RunLog) -> Iterator[tuple[str, str, str]]:
    for name in ("tokens/s", "images/s", "samples/s", "s/step", "MFU %"):
        values = log.finite(name)
        if values:
            note = f"{number_text(min(values))} to {number_text(max(values))}"
            yield f"median {name}", number_text(median(values)), note
    memory = log.finite("memory GiB")
    if memory:
        yield "most memory", f"{number_text(max(memory))} GiB", "of the first rank"


def _totals(log: RunLog, samples: int | None) -> Iterator[tuple[str, str, str]]:
    """Rates times seconds, summed over the lines of the log."""
    for name in ("samples", "images", "tokens"):
        if log.finite(f"{name}/s"):
            seen = total(log.steps, f"{name}/s", log.first_start)
            epochs = samples is not None and name == "samples"
            note = f"{seen / samples:.2f} epochs of {samples:,}" if epochs and samples else ""
            shown = f"{seen:,.0f}" if seen < _EXACT else count_text(seen)
            yield f"{name} trained on", shown, note
    of_kinds = {kind: sum(log.finite(name)) for kind, name in KIND_COLUMNS.items()}
    if any(of_kinds.values()):
        seen = sum(of_kinds.values())
        shown = ", ".join(f"{kind} {count / seen:.1%}" for kind, count in of_kinds.items() if count)
        yield "samples by kind", f"{seen:,.0f}", shown
    seconds = total(log.steps, before=log.first_start)
    if seconds:
        yield "time of the steps", _time_text(seconds), "without evaluations and saves"


def _time_text(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:,} h {minute:02d} min" if hours else f"{minute} min {second:02d} s"


def clock_text(time: str) -> str:
    """A time in ISO 8601 for a person; what is none stays as it is."""
    return time.replace("T", " ").replace("+00:00", " UTC") if time.endswith("+00:00") else time


def columns_table(log: RunLog) -> str:
    """Last, lowest, median and highest value of every column of the log."""
    heads = ("column", "values", "last", "lowest", "median", "highest", "not finite")
    rows = []
    for name, values in log.columns.items():
        finite = [value for value in values.values() if value is not None]
        numbers = [""] * 4
        if finite:
            shown = (finite[-1], min(finite), median(finite), max(finite))
            numbers = [number_text(value) for value in shown]
        odd = len(values) - len(finite)
        rows.append([html.escape(name), f"{len(values):,}", *numbers, f"{odd:,}" if odd else ""])
    return table(heads, rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers; the cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="numbers"><tr>{head}</tr>{body}</table></div>'


def settings_tables(config: RunConfig) -> str:
    """Every setting by group; those that differ from their defaults are marked."""
    return "".join(_group(config, group) for group in group_classes())


def _group(config: RunConfig, group: str) -> str:
    specs = [spec for spec in all_fields().values() if spec.group == group]
    changed = [spec for spec in specs if config.get(spec.name) != spec.default]
    rows = "".join(_setting(spec, config.get(spec.name)) for spec in specs)
    summary = f"{group} <small>{len(changed)} of {len(specs)} differ from their defaults</small>"
    return (
        f"<details{' open' if changed else ''}><summary>{summary}</summary>"
        '<div class="wide"><table class="settings">'
        f"<tr><th>flag</th><th>value</th><th>default</th></tr>{rows}</table></div></details>"
    )


def _setting(spec: FieldSpec, value: Any) -> str:
    differs = value != spec.default
    mark = ' class="differs"' if differs else ""
    return (
        f'<tr{mark}><td title="{html.escape(spec.info.help)}">{spec.option}</td>'
        f"<td>{_value_text(value)}{'<b> *</b>' if differs else ''}</td>"
        f"<td>{_value_text(spec.default)}</td></tr>"
    )


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return html.escape(", ".join(str(part) for part in value)) or "none"
    return html.escape(f"{value:g}" if isinstance(value, float) else str(value))


def environment_tables(log: RunLog) -> str:
    """Where the run computed at its last start, and what was otherwise at earlier ones."""
    if not log.starts:
        return "<p>The log has no record of a start: an older version wrote it.</p>"
    last = log.starts[-1].environment
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in last.items()
    )
    text = f'<div class="wide"><table class="facts">{rows}</table></div>'
    if len(log.starts) == 1:
        return text
    differing = [
        name
        for name in dict.fromkeys(name for start in log.starts for name in start.environment)
        if len({start.environment.get(name) for start in log.starts}) > 1
    ]
    starts = [
        [
            f"{start.iteration:,}",
            html.escape(clock_text(start.time)),
            *(html.escape(start.environment.get(name, "none")) for name in differing),
        ]
        for start in log.starts
    ]
    heads = ["from step", "time", *(html.escape(name) for name in differing)]
    return f"{text}<h3>Starts of the run</h3>{table(heads, starts)}"
