"""Which process a rank is, and whether a process of this machine still runs. Imports no torch."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, and where its number is valid.

    Attributes:
        started: when it started, in the kernel's ticks since boot: numbers are used again.
        namespace: names the boot and the container that ``pid`` counts in; empty where unknown.
    """

    host: str
    pid: int
    started: str
    namespace: str


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    _, started = _state(pid)
    return ProcessIdentity(socket.gethostname(), pid, started, _namespace())


def has_ended(process: ProcessIdentity, *, seen_from: ProcessIdentity) -> bool:
    """Whether a process is known to have ended; False for one that cannot be seen from here."""
    if not process.namespace or process.namespace != seen_from.namespace:
        return False
    state, started = _state(process.pid)
    return state in ("", "Z", "X") or started != process.started


def _state(pid: int) -> tuple[str, str]:
    """The state letter of a process and its start, both empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", ""
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _namespace() -> str:
    """Equal for processes that see each other's numbers; empty without Linux's /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
