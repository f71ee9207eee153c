"""Start real training processes: under torchrun, or one by one as srun does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from own_process import TORCHRUN

SCRIPT = str(Path(__file__).with_name("signalled_train.py"))
NO_FAULT = {"place": "forward", "call": -1}


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    output: str
    seconds: float


def by_hand(
    arguments: list[str],
    fault: dict[str, Any] = NO_FAULT,
    world_size: int = 2,
    timeout: float = 150,
) -> list[Ended]:
    """Run one process per rank, with the variables that srun gives; how each ended, by rank.

    A process that ends none of the others, such as one that was stopped, is killed at the end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    command = [sys.executable, SCRIPT, json.dumps(fault), *arguments]
    processes = [_start(command, **address, RANK=str(rank)) for rank in range(world_size)]
    ended = {
        rank: _end(process, timeout)
        for rank, process in enumerate(processes)
        if fault.get("signal") != "SIGSTOP" or rank != fault["rank"]
    }
    for rank in set(range(world_size)) - set(ended):
        ended[rank] = _end(processes[rank], 0)
    return [ended[rank] for rank in range(world_size)]


def under_torchrun(
    arguments: list[str],
    fault: dict[str, Any] = NO_FAULT,
    world_size: int = 2,
    timeout: float = 150,
) -> Ended:
    """Run torchrun; how it ended, with the output of all ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    command = [sys.executable, *launcher, SCRIPT, json.dumps(fault), *arguments]
    return _end(_start(command), timeout)


def _start(command: list[str], **variables: str) -> tuple[subprocess.Popen[str], IO[str]]:
    environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in _end
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        # One group, so that nothing stays behind, and a signal to it does not reach pytest.
        start_new_session=True,
    )
    return process, output


def _end(started: tuple[subprocess.Popen[str], IO[str]], timeout: float) -> Ended:
    process, output = started
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout)
    seconds = time.monotonic() - began
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with output:
        output.seek(0)
        return Ended(process.returncode, output.read(), seconds)
