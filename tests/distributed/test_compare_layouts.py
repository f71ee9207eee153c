"""The tool that a user runs on a cluster to see that two layouts train alike."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "compare_layouts.py"


def compare(setup, *options):
    common = [
        f"--pretrained-checkpoint={setup.root}",
        f"--data-path={setup.store}",
        "--seq-length=384",
        "--lr=1e-3",
        "--num-workers=0",
    ]
    command = [sys.executable, str(TOOL), "--steps=1", *options, "--", *common]
    return subprocess.run(command, capture_output=True, text=True)


def test_two_layouts_agree(setup):
    done = compare(setup, "--first=1", "--second=2 --tensor-model-parallel-size 2")
    assert done.returncode == 0, done.stderr
    assert "step 1: lm loss" in done.stdout and "the layouts agree" in done.stdout
    assert "parameters agree, most apart" in done.stdout


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            "1",
            "2 --tensor-model-parallel-size 2 --lr 2e-3",
            ["the first difference is in step 1: ", "of its norm, held by rank", "second layout"],
        ),
        ("1", "2 --save out", ["--save out: both layouts would use it: drop it"]),
        ("1 --num-layers 9", "1", ["'1 --num-layers 9' failed: --num-layers 9 contradicts"]),
    ],
)
def test_a_difference_or_an_error_is_one_line(setup, first, second, words):
    done = compare(setup, f"--first={first}", f"--second={second}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("compare_layouts")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]
