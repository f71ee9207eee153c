"""Command lines run one after the other in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from command_line_cases import Case
from own_process import ENVIRONMENT

_PROGRAM = Path(__file__).with_name("command_lines.py")


def ran(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """What became of each: {"status", "out", "err"}."""
    sent = [
        {"program": c.program, "arguments": c.arguments, "environment": c.environment}
        for c in cases
    ]
    done = subprocess.run(
        [sys.executable, str(_PROGRAM)],
        input=json.dumps(sent),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results
