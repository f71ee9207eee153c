"""What fp8_emulation.py makes of its runs, by numbers that can be checked in the head."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import loss_comparison

    return loss_comparison


@pytest.fixture
def pair(comparison):
    return comparison.Pair("b for a", "a", "b")


CURVES = {
    "a": [("1", 1.0), ("2", 0.5), ("3", 0.01)],
    "b": [("1", 1.1), ("2", 0.4), ("3", 0.02)],
}


def test_windows_hold_every_step_once(comparison):
    assert comparison.windows([1.0, 3.0, 5.0, 7.0, 9.0], 2) == [("1 to 2", 2.0), ("3 to 5", 7.0)]
    assert comparison.windows([1.0, 3.0], 5) == [("1 to 1", 1.0), ("2 to 2", 3.0)]


def test_what_is_below_the_floor_is_not_compared(comparison, pair):
    found = comparison.differences(CURVES, pair, 0.05)
    assert found == [pytest.approx(0.1), pytest.approx(-0.2), None]
    rows = comparison.table("step", CURVES, [pair], 0.05)
    assert rows[0] == "| step | a | b | b for a |"
    assert rows[-2:] == [
        "| 2 | 0.5000 | 0.4000 | -20.0% |",
        "| 3 | 0.0100 | 0.0200 | below the floor |",
    ]
    (line,) = comparison.summary(CURVES, [pair], 0.05)
    assert line == (
        "- b for a: 2 of 3 places are above the floor; mean -5.0%, root mean square 15.8%, "
        "largest -20.0%, last -20.0%"
    )
    (line,) = comparison.summary(CURVES, [pair], 2.0)
    assert "no place where both losses are at least 2" in line


def test_answers_that_only_one_run_has_right_are_counted(comparison, pair):
    answers = {
        "a": {"1": True, "2": True, "3": False, "4": True},
        "b": {"1": True, "2": False, "3": True, "4": False},
    }
    lines = comparison.accuracy(answers, [pair])
    assert lines[2:4] == ["| a | 3 | 4 | 75.0% | 21.7% |", "| b | 2 | 4 | 50.0% | 25.0% |"]
    assert lines[-1] == "- b for a: 2 questions are right in a alone, 1 in b alone"
