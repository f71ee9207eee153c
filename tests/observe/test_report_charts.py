"""Axes hold their values, ticks can be told apart, and curves stay inside their charts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_inputs import line, start, write_jsonl

from megatron_llava.observe.report_charts import Chart, chart_figure, charts_of, thinned
from megatron_llava.observe.report_scale import (
    number_text,
    round_values,
    step_axis,
    tick_text,
    value_axis,
)
from megatron_llava.observe.run_log import read_log

NUMBERS = st.floats(-1e300, 1e300, allow_nan=False)


@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_an_axis_holds_its_values(values):
    axis = value_axis(values)
    assert axis.low < axis.high and [*axis.ticks] == sorted({*axis.ticks})
    assert all(-1e-6 <= axis.share(value) <= 1 + 1e-6 for value in values)
    assert len({tick_text(tick, axis) for tick in axis.ticks}) == len(axis.ticks)
    assert 2 <= len(axis.ticks) <= 9


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_an_axis_of_steps_has_whole_ticks(one, other):
    axis = step_axis(min(one, other), max(one, other))
    assert axis.ticks and all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(0 <= axis.share(step) <= 1 for step in (one, other))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([9.7, 1.2], ["0", "2", "4", "6", "8", "10"]),
        ([0.00001, 0.00002], ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]),
        ([95.0, 99.9], ["95", "96", "97", "98", "99", "100"]),
        ([0.001, 0.0015], ["0.0010", "0.0011", "0.0012", "0.0013", "0.0014", "0.0015"]),
        ([7000.0, 8000.0, 1.0], ["0", "2,000", "4,000", "6,000", "8,000"]),
        ([1.0, 1.5, 3000.0], ["1", "10", "100", "1,000", "10,000"]),
        ([5.0, 5.0], ["0", "1", "2", "3", "4", "5"]),
        ([0.0], ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_ticks_are_round(values, ticks):
    axis = value_axis(values)
    assert [tick_text(tick, axis) for tick in axis.ticks] == ticks


def test_round_values_reach_over_the_range():
    assert round_values(0.0, 9.7, 5) == [0, 2, 4, 6, 8, 10]
    assert round_values(-3.0, 3.0, 5) == [-4, -2, 0, 2, 4]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (2.34567, "2.346"),
        (123.45, "123.5"),
        (1234.6, "1,235"),
        (2e-6, "2e-6"),
        (0.00123, "0.00123"),
        (-0.5, "-0.5"),
        (100.0, "100"),
        (3e15, "3e15"),
    ],
)
def test_numbers_have_four_digits(value, shown):
    assert number_text(value) == shown


def test_every_column_is_in_a_chart(tmp_path):
    more = {"lr": 1e-3, "lr x0.2": 2e-4, "MFU %": 41.0, "time vision %": 20.0, "HFU %": 47.0}
    more |= {"text samples": 3, "video samples": 1}
    more |= {"time data %": 3.0, "data s/step min": 0.1, "data s/step max": 0.2, "new": 1}
    rows = [
        start(0),
        line(1, **more),
        line(2, **more, host="a"),
        {"iteration": 2, "valid loss": 1.5},
    ]
    charts = charts_of(read_log(write_jsonl(tmp_path / "log.jsonl", rows)))
    assert [(chart.title, [*chart.series]) for chart in charts] == [
        ("loss", ["lm loss", "valid loss"]),
        ("learning rate", ["lr", "lr x0.2"]),
        ("tokens/s", ["tokens/s"]),
        ("samples/s", ["samples/s"]),
        ("s/step", ["s/step"]),
        ("skipped steps", ["skipped steps"]),
        ("MFU and HFU %", ["MFU %", "HFU %"]),
        ("time %", ["time vision %", "time data %"]),
        ("samples by kind", ["text samples", "video samples"]),
        ("data s/step", ["data s/step min", "data s/step max"]),
        ("new", ["new"]),
    ]


def figure(tmp_path, *rows):
    log = read_log(write_jsonl(tmp_path / "log.jsonl", list(rows)))
    return chart_figure(charts_of(log)[0], log)


def test_a_gap_breaks_the_curve_and_is_told(tmp_path):
    losses = [4.0, 3.0, None, 2.0, 2.0, None, 1.0]
    rows = [{**line(i + 1), "lm loss": loss} for i, loss in enumerate(losses)]
    text = figure(tmp_path, *rows)
    path = re.search(r' d="([^"]+)"', text).group(1)
    assert [part.count("L") for part in path[1:].split("M")] == [1, 1, 0]
    assert text.count("<circle") == 5 and "2 values not finite" in text
    assert "no number" in text
    rows = [{**line(i), "lm loss": None} for i in (1, 2)]
    assert "no finite value" in figure(tmp_path, *rows) and "<svg" not in figure(tmp_path, *rows)


def test_a_resume_is_a_line_in_the_chart(tmp_path):
    text = figure(tmp_path, start(0), line(10), line(20), start(20), line(30))
    assert text.count('class="resume"') == 1 and "resumed at step 20" in text


@given(
    st.lists(st.one_of(st.none(), NUMBERS), min_size=1, max_size=60),
    st.lists(st.integers(1, 50), min_size=60, max_size=60),
)
def test_curves_stay_inside_their_chart(tmp_path_factory, values, gaps):
    steps = [sum(gaps[: index + 1]) for index in range(len(values))]
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = read_log(write_jsonl(path, [line(step) for step in steps]))
    series = {"<a>": dict(zip(steps, values, strict=True))}
    text = chart_figure(Chart("a & b", "c", series), log)
    assert "<a>" not in text and "a &amp; b" in text
    finite = [value for value in values if value is not None]
    if not finite:
        assert "no finite value" in text
        return
    path = re.search(r' d="([^"]+)"', text).group(1)
    places = [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]
    assert len(places) == len(finite)
    assert all(74 <= x <= 446 and 12 <= y <= 206 for x, y in places)


def test_a_noisy_curve_has_a_line_of_means(tmp_path):
    smooth = figure(tmp_path, *[line(step) for step in range(1, 1601)])
    assert "trend" not in smooth and "thick" not in smooth
    few = figure(tmp_path, *[line(step, 1.0 + step % 2) for step in range(1, 401)])
    assert "trend" not in few and "thick" not in few
    text = figure(tmp_path, *[line(step, 1.0 + step % 2 * 2) for step in range(1, 1601)])
    assert "thick: the mean of 20 values of the log" in text
    (trend,) = re.findall(r'class="trend" d="M([^"]+)"', text)
    places = [tuple(map(float, place.split())) for place in trend.split("L")]
    # Losses of 1 and 3 in turn, on an axis from 0 to 3.
    assert len(places) == 80 and {y for _, y in places} == {round(206 - 194 * 2 / 3, 1)}


def test_a_long_curve_keeps_its_ends_and_extremes():
    points = [(step, float(step % 7)) for step in range(100_000)]
    points[51_234] = (51_234, 1e6)
    points[60_000] = (60_000, None)
    kept = thinned(points)
    assert len(kept) < 1400 and kept == sorted(kept, key=lambda point: point[0])
    assert {points[0], points[-1], points[51_234], points[60_000]} <= {*kept}
    assert {*kept} <= {*points}
