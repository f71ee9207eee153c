"""What parallel_overhead.py makes of its measurements, and one run of it."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import parallel_overhead

    return parallel_overhead


def result(seconds, predicted=None, counted=None):
    predicted = predicted or {}
    return {
        "seconds": seconds,
        "predicted": predicted,
        "counted": predicted if counted is None else counted,
        "small": 20,
    }


def test_a_ratio_is_to_the_baseline_before_it_and_the_slowest_rank(benchmark_module):
    cases = [benchmark_module.BASELINE, benchmark_module.CASES[1]]
    ranks = [result([1.0, 4.0, 3.0]), result([2.0, 3.0, 6.0])]
    line = benchmark_module.times_table(cases, [[result([2.0, 1.0, 9.0])], ranks])[1]
    assert line.split()[:8] == ["TP2", "8", "4.000", "2.000", "2.000", "1.000", "2.00", "2.00"]


def test_a_difference_of_one_byte_is_told(benchmark_module):
    kind, other = ("tensor-parallel", "all-reduce"), ("pipeline", "send")
    ranks = [result([1.0], {kind: 1000}), result([1.0], {kind: 1000}, {kind: 1001, other: 5})]
    lines, wrong = benchmark_module.bytes_table([benchmark_module.CASES[1]], [ranks])
    assert [line.split()[-2:] for line in wrong] == [["0", "5"], ["1,000", "1,001"]]
    assert len(lines) == 1 + 3 + 2


def test_one_layout_from_the_command_line(tmp_path):
    output = tmp_path / "result.txt"
    command = [FOLDER / "parallel_overhead.py", "--layouts", "DP2", "--steps=1"]
    done = subprocess.run(
        [sys.executable, *command, f"--output={output}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the count is the prediction" in done.stdout
    text = output.read_text()
    assert "data-parallel all-reduce" in text and "commit: " in text


def test_an_unknown_layout(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "parallel_overhead.py", "--layouts", "TP3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("parallel_overhead: --layouts: 'TP3'")
