"""The plan builder of csrc/ compiled by itself, whether or not the package has it installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"


def compile_plan(output: Path, *arguments: str) -> Path:
    """The plan builder of csrc/ where a warning is an error."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = [str(path) for path in sorted(CSRC.glob("plan*.cpp"))]
    assert len(sources) == 4, sources
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-I", str(CSRC)]
    command = [compiler, *flags, *arguments, *sources, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output
