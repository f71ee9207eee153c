"""The processes that read batches ahead: they live while the trainer does, and no longer."""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# What torch says of a worker that is gone, by its watch over the pipe and by its signal handler.
_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\) ([^.]*)")
_LATE = "DataLoader timed out"
_SECONDS_TO_END = 5


def begin_worker(worker: int) -> None:
    """Set up a worker process.

    It ignores SIGTERM, which Slurm sends to every process, because the trainer still needs batches
    to end its step, and SIGINT, which a terminal sends likewise. It dies with the trainer, also
    with one that is killed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def patient(loader: DataLoader[Any], late: Callable[[int, int], None]) -> Iterator[Any]:
    """The loader's batches, however long one takes. Workers that are left when the program ends are
    killed.

    An error that ends the program leaves them running until then; python would ask them to end
    with SIGTERM, which they ignore, and wait for that for ever.

    Args:
        loader: its timeout says how often to tell.
        late: called after each timeout with the number of the batch that is awaited, from 0, and
            how many timeouts it has taken; an error of it ends the wait.
    """
    others = set(active_children())
    batches = iter(loader)
    workers = set(active_children()) - others
    atexit.register(_kill, workers, os.getpid())
    number, times = 0, 0
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith(_LATE):
                    _forget_dead(workers)
                    raise
                times += 1
                late(number, times)
                continue
            except (EOFError, OSError) as error:
                # A worker that is gone cannot hand over the memory of what it has sent; its ends of
                # pipes close a moment before it counts as ended.
                closed = wait([child.sentinel for child in workers], _SECONDS_TO_END)
                gone = [child for child in workers if child.sentinel in closed]
                if not gone:
                    raise
                for child in gone:
                    child.join()
                pids = ", ".join(str(child.pid) for child in gone)
                message = f"DataLoader worker (pid(s) {pids}) ended unexpectedly"
                raise RuntimeError(message) from error
            number, times = number + 1, 0
            yield batch
    finally:
        # An error's traceback would keep the iterator, and the workers with it.
        del batches


def lost_worker(error: RuntimeError) -> str | None:
    """One line for the user where an error says that a worker is gone, else None.

    Torch raises it wherever the trainer is when the worker ends.
    """
    match = _LOST.match(str(error))
    if match is None:
        return None
    return (
        f"a loader worker (process {match[1]}) {match[2]}: where memory ran out, lower "
        "--num-workers; run the same command again"
    )


def _forget_dead(workers: Iterable[BaseProcess]) -> None:
    """Collect workers that have ended: until then torch raises their loss anew, wherever the
    program is, each time that any child of it ends."""
    for worker in workers:
        worker.is_alive()


def _kill(processes: Iterable[BaseProcess], parent: int) -> None:
    if os.getpid() != parent:
        return
    # Torch would take their end for an error of its own, and report it after the true one.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in processes:
        process.kill()
