"""Run a program in a process of its own, where the platform of the tests is not installed."""

import os
import subprocess
import sys
import textwrap

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in TORCHRUN}


def run_python(code: str, **torchrun: str) -> str:
    """What the program prints; it must succeed. Of torchrun's variables it sees only the given."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **torchrun},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
