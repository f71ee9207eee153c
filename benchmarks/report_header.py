"""What a benchmark's numbers depend on: machine, versions, commit, command, date."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path


def header() -> list[str]:
    """Lines to put before the results."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = ["the machine was busy: its times say little"] if load > cores / 2 else []
    return [
        f"date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"command: python {shlex.join(sys.argv)}",
        f"commit: {_commit()}",
        f"device: {_processor()}, {cores} cores, load {load:.1f} before the start",
        *busy,
        f"torch {version('torch')}, megatron-core {version('megatron-core')}, gloo, "
        f"python {platform.python_version()}",
    ]


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown, for this is no git checkout"
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
