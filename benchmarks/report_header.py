"""What a benchmark's numbers depend on: machine, versions, commit, command, date."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from megatron_llava.platform.environment import commit_of, processor_name


def header() -> list[str]:
    """Lines to put before the results."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = ["the machine was busy: its times say little"] if load > cores / 2 else []
    return [
        f"date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"command: python {shlex.join(sys.argv)}",
        f"commit: {_commit()}",
        f"device: {processor_name()}, {cores} cores, load {load:.1f} before the start",
        *busy,
        f"torch {version('torch')}, megatron-core {version('megatron-core')}, gloo, "
        f"python {platform.python_version()}",
    ]


def _commit() -> str:
    found = commit_of(Path(__file__))
    if found is None:
        return "unknown, for this is no git checkout"
    commit, changed = found
    return commit[:7] + (" with changes" if changed else "")
