"""What a run computes with: versions, device, host, and the commit of its code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from megatron_llava.platform.torchrun import world_size

_PACKAGES = ("megatron-core", "transformers", "transformer-engine", "flash-attn", "megatron-llava")
_SECONDS_FOR_GIT = 10


def run_environment(device: torch.device) -> dict[str, str]:
    """The surroundings of this process by name, for a person; what is not there is left out.

    Args:
        device: what it computes on.
    """
    found: dict[str, str | None] = {
        "git commit": git_commit(Path(__file__)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in _PACKAGES},
        "ranks": str(world_size()),
        "device": "CPU",
        "threads of a rank": str(torch.get_num_threads()),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": f"{processor_name()}, {os.cpu_count()} threads",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        found["CUDA"] = torch.version.cuda
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return {name: value for name, value in found.items() if value}


def git_commit(file: Path) -> str | None:
    """``commit_of`` in words."""
    found = commit_of(file)
    if found is None:
        return None
    commit, changed = found
    return f"{commit} with local changes" if changed else commit


def commit_of(file: Path) -> tuple[str, bool] | None:
    """The commit of the repository that a file of this program belongs to, and whether files differ
    from it; None for an installed copy, or without git.
    """
    try:
        # An installed copy may lie below a repository that is not its own.
        if _git(file, "ls-files", "--error-unmatch", "--", file.name) is None:
            return None
        commit = _git(file, "rev-parse", "HEAD")
        changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if commit is None else (commit, bool(changes))


def _git(file: Path, *arguments: str) -> str | None:
    """What git prints about the folder of ``file``, None where it fails."""
    done = subprocess.run(
        # Without locks it writes nothing, also not the index.
        ["git", "--no-optional-locks", "-C", str(file.parent), *arguments],
        capture_output=True,
        text=True,
        timeout=_SECONDS_FOR_GIT,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    """Of an installed package, which is not imported for it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
