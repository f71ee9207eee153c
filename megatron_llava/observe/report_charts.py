"""Every numeric column of a log as a chart: inline SVG that needs no script."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_llava.data.sample_kinds import KIND_COLUMNS
from megatron_llava.observe.report_scale import (
    Axis,
    number_text,
    step_axis,
    tick_text,
    value_axis,
)
from megatron_llava.observe.run_log import RunLog

Values = Mapping[int, float | None]
Points = list[tuple[int, float | None]]

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 446, 12, 206
# A curve of more steps than these shows of each of so many parts its ends and extremes.
_PARTS = 320
# A curve of at most these values shows each as a dot; one of more than those, that goes up and down
# at one of four steps or more, is shown with so many means.
_DOTS, _DENSE, _MEANS = 40, 400, 80

_TELLING = {
    "grad norm": "before clipping, over all parameters that learn",
    "tokens/s": "positions of the language model without padding",
    "fill %": "of the positions of full packs, those that hold a sample",
    "samples by kind": "of all ranks, since the line before",
    "data wait %": "of the time, spent waiting for batches; the slowest rank",
    "memory GiB": "of the first rank: highest so far on a GPU, resident on a CPU",
    "s/step": "seconds without evaluations and saves",
    "TFLOP/s/rank": "of the model without recomputation",
    "MFU and HFU %": "of the peak, without and with recomputation",
    "time %": "of the time of all ranks together",
    "eta s": "seconds that were left",
    "skipped steps": "steps with a loss or gradient that was not finite, or a spike, so far",
}


@dataclass(frozen=True)
class Chart:
    """Columns that share a pair of axes.

    Attributes:
        unit: what the vertical axis says.
        series: {column: {step: value}}.
    """

    title: str
    unit: str
    series: Mapping[str, Values]


def charts_of(log: RunLog) -> list[Chart]:
    """The losses and the learning rates, then the other columns in their order, those of one
    quantity together; no column is left out."""
    charts: dict[str, dict[str, Values]] = {"loss": {}, "learning rate": {}}
    for name, values in log.columns.items():
        charts.setdefault(_quantity(name), {})[name] = values
    return [Chart(title, title, series) for title, series in charts.items() if series]


def _quantity(name: str) -> str:
    """What a column shares a chart by: alone, its own name."""
    if name.endswith(" loss"):
        return "loss"
    if name == "lr" or name.startswith("lr "):
        return "learning rate"
    if name.startswith("time ") and name.endswith(" %"):
        return "time %"
    if name in KIND_COLUMNS.values():
        return "samples by kind"
    if name in ("MFU %", "HFU %"):
        return "MFU and HFU %"
    # Over the ranks: minimum, median and maximum.
    quantity, _, statistic = name.rpartition(" ")
    return quantity if statistic in ("min", "median", "max") else name


def chart_figure(chart: Chart, log: RunLog) -> str:
    """A figure with a legend; a chart without a finite value says so instead."""
    finite = [v for values in chart.series.values() for v in values.values() if v is not None]
    title = f"<h3>{html.escape(chart.title)}</h3>"
    if not finite:
        caption = f"{title}<p>no finite value</p>"
        return f'<figure class="chart"><figcaption>{caption}</figcaption></figure>'
    x, y = step_axis(log.first_step, log.last_step), value_axis(finite)
    legend = "".join(_legend(chart)) if len(chart.series) > 1 else ""
    notes = "; ".join(_notes(chart, y))
    return (
        f'<figure class="chart"><figcaption>{title}{legend}<p>{notes}</p></figcaption>'
        f'<div class="plot">{_svg(chart, x, y, log)}<div class="tip" hidden></div></div></figure>'
    )


def _notes(chart: Chart, y: Axis) -> Iterator[str]:
    if chart.title in _TELLING:
        yield _TELLING[chart.title]
    odd = sum(value is None for values in chart.series.values() for value in values.values())
    if odd:
        yield f'<span class="odd">{odd} {"value" if odd == 1 else "values"} not finite: gaps</span>'
    noisy = [len(values) for values in chart.series.values() if _is_noisy(sorted(values.items()))]
    if noisy:
        yield f"thick: the mean of {max(noisy) // _MEANS} values of the log"
    if y.logarithmic:
        yield "logarithmic axis"


def _legend(chart: Chart) -> Iterator[str]:
    for number, name in enumerate(chart.series):
        yield f'<span class="key"><i class="c{number % 8}"></i>{html.escape(name)}</span>'


def _svg(chart: Chart, x: Axis, y: Axis, log: RunLog) -> str:
    label = html.escape(f"{chart.title} over the steps {log.first_step} to {log.last_step}")
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" '
        f'data-scale="{x.low:.0f} {x.high:.0f} {_LEFT} {_RIGHT}">',
        *_grid(x, y, chart.unit),
        *_resumes(x, log),
        f'<line class="cross" y1="{_TOP}" y2="{_BOTTOM}" x1="0" x2="0" visibility="hidden"/>',
    ]
    for number, (name, values) in enumerate(chart.series.items()):
        parts.append(_curve(name, number, values, x, y))
    return "".join([*parts, "</svg>"])


def _across(axis: Axis, value: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * axis.share(value)


def _down(axis: Axis, value: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * axis.share(value)


def _grid(x: Axis, y: Axis, unit: str) -> Iterator[str]:
    for tick in y.ticks:
        height = _down(y, tick)
        yield (
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick_text(tick, y)}'
            "</text>"
        )
    for tick in x.ticks:
        place = _across(x, tick)
        yield (
            f'<line class="tick" x1="{place:.1f}" x2="{place:.1f}" y1="{_BOTTOM}" '
            f'y2="{_BOTTOM + 4}"/><text x="{place:.1f}" y="{_BOTTOM + 18}" '
            f'text-anchor="middle">{tick:,.0f}</text>'
        )
    middle = (_TOP + _BOTTOM) / 2
    yield (
        f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
        f'<text class="label" x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 6}" '
        'text-anchor="middle">step</text>'
        f'<text class="label" transform="rotate(-90)" x="{-middle}" y="13" '
        f'text-anchor="middle">{html.escape(unit)}</text>'
    )


def _resumes(x: Axis, log: RunLog) -> Iterator[str]:
    """Where the run went on after an interruption."""
    for step in sorted({start.iteration for start in log.starts if start.iteration > 0}):
        if x.low <= step <= x.high:
            place = _across(x, step)
            yield (
                f'<line class="resume" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" '
                f'y2="{_BOTTOM}"><title>resumed at step {step}</title></line>'
            )


def _curve(name: str, number: int, values: Values, x: Axis, y: Axis) -> str:
    every = sorted(values.items())
    points = thinned(every)
    is_noisy = _is_noisy(every)
    color = f"c{number % 8}"
    steps = " ".join(str(step) for step, _ in points)
    shown = ";".join("no number" if v is None else number_text(v) for _, v in points)
    parts, dots = [], []
    for run in _runs(points):
        places = [(_across(x, step), _down(y, value)) for step, value in run]
        parts.append("M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in places))
        # A line needs two points.
        if len(run) == 1 or len(points) <= _DOTS:
            dots += [
                f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2"/>' for across, down in places
            ]
    trend = _trend(every, x, y) if is_noisy else ""
    classes = f"{color} noisy" if is_noisy else color
    return (
        f'<g class="{classes}"><path data-name="{html.escape(name)}" data-steps="{steps}" '
        f'data-values="{html.escape(shown)}" d="{"".join(parts)}"/>{"".join(dots)}{trend}</g>'
    )


def _is_noisy(points: Points) -> bool:
    """Whether there are so many values, and so many turns, that a line hides where they go."""
    values = [value for _, value in points if value is not None]
    if len(values) <= _DENSE:
        return False
    rises = [right > left for left, right in zip(values, values[1:], strict=False) if left != right]
    turns = sum(left != right for left, right in zip(rises, rises[1:], strict=False))
    return turns > len(values) / 4


def _trend(points: Points, x: Axis, y: Axis) -> str:
    """A line through the means of equally many successive values."""
    finite = [(step, value) for step, value in points if value is not None]
    places = []
    for number in range(_MEANS):
        part = finite[number * len(finite) // _MEANS : (number + 1) * len(finite) // _MEANS]
        if part:
            step = sum(step for step, _ in part) / len(part)
            value = math.fsum(value / len(part) for _, value in part)
            places.append(f"{_across(x, step):.1f} {_down(y, value):.1f}")
    return f'<path class="trend" d="M{"L".join(places)}"/>' if places else ""


def _runs(points: Points) -> Iterator[list[tuple[int, float]]]:
    """The points between gaps."""
    run: list[tuple[int, float]] = []
    for step, value in points:
        if value is not None:
            run.append((step, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def thinned(points: Sequence[tuple[int, float | None]], parts: int = _PARTS) -> Points:
    """At most four points, or five with a gap, of each of so many parts of a long curve: the first,
    the lowest, the highest and the last, so that it looks as it would with all points."""
    if len(points) <= 4 * parts:
        return list(points)
    kept: Points = []
    for number in range(parts):
        part = range(number * len(points) // parts, (number + 1) * len(points) // parts)
        finite = [index for index in part if points[index][1] is not None]
        gap = [index for index in part if points[index][1] is None][:1]
        chosen = set(gap)
        if finite:
            by_value = sorted(finite, key=lambda index: points[index][1] or 0.0)
            chosen |= {finite[0], finite[-1], by_value[0], by_value[-1]}
        kept += [points[index] for index in sorted(chosen)]
    return kept
