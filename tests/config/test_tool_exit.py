"""An interruption ends every program with one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from own_process import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PROGRAMS = [*sorted(ROOT.glob("tools/*.py")), ROOT / "megatron_llava" / "train.py"]
INTERRUPTED = """
import signal
from megatron_llava.config.tool_exit import {name}

def work():
    signal.raise_signal(signal.SIGINT)

{how}
"""


@pytest.mark.parametrize(
    ("name", "how"),
    [("run_tool", "run_tool(work)"), ("interruptible", "with interruptible():\n    work()")],
)
def test_an_interruption_is_one_line(name, how):
    command = [sys.executable, "-c", INTERRUPTED.format(name=name, how=how)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "interrupted\n")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_ends_so(path):
    text = path.read_text(encoding="utf-8")
    assert "with interruptible():\n        main(" in text or "run_tool(" in text
