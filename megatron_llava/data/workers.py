"""The processes that read batches ahead: they live while the trainer does, and no longer."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def begin_worker(worker: int) -> None:
    """Set up a worker process.

    It ignores SIGTERM: Slurm sends that to every process, and the trainer still needs batches to
    end its step. It dies with the trainer, also with one that is killed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches. Workers that are left when the program ends are killed.

    An error that ends the program leaves them running until then; python would ask them to end
    with SIGTERM, which they ignore, and wait for that for ever. Keep no name for the iterator: an
    error's traceback would keep it, and the workers with it.
    """
    others = set(active_children())
    batches = iter(loader)
    atexit.register(_kill, set(active_children()) - others, os.getpid())
    return batches


def _kill(processes: Iterable[BaseProcess], parent: int) -> None:
    if os.getpid() != parent:
        return
    # Torch would take their end for an error of its own, and report it after the true one.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in processes:
        process.kill()
