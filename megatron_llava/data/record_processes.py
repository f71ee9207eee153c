"""A function over a stream of records in processes: results in the order of the records."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from megatron_llava.platform.held_signals import HeldSignals

Item = TypeVar("Item")
Result = TypeVar("Result")

# A chunk is worked on and travels between processes at once: large enough to hide the trip, small
# enough that the image bytes of all chunks in flight (4 per worker) fit in memory.
_CHUNK = 16
_CHUNKS_IN_FLIGHT = 4

_SECONDS_OF_DEAFNESS = 0.2
"""Longest time that an interrupt waits while a result is waited for."""


def in_processes(
    items: Iterable[Item],
    make: Callable[[], Callable[[Sequence[Item]], list[Result]]],
    workers: int,
) -> Generator[Result, None, None]:
    """The result of each item, in order; a bounded number is in flight.

    Close it (`contextlib.closing`) to end the processes where not all results are taken.

    Args:
        make: makes the function of some items, which gives a result for each, once in every
            process; it is pickled.
        workers: processes; 1 for this one.
    """
    iterator = iter(items)
    chunks = iter(lambda: list(islice(iterator, _CHUNK)), [])
    if workers == 1:
        function = make()
        for chunk in chunks:
            yield from function(chunk)
        return
    # Forked workers share what is imported already; elsewhere they start from nothing.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pending: deque[Future[list[Any]]] = deque()
    # An interrupt is an exception anywhere; amid the pool's locks it would leave one taken.
    with HeldSignals() as signals:
        pool = ProcessPoolExecutor(workers, context, _start_worker, (make,))
        try:
            while True:
                with signals.through():
                    chunk = next(chunks, [])
                if chunk:
                    pending.append(pool.submit(_results, chunk))
                if not pending:
                    return
                if not chunk or len(pending) >= _CHUNKS_IN_FLIGHT * workers:
                    results = _result(pending.popleft(), signals)
                    with signals.through():
                        yield from results
        finally:
            signals.holding = True
            # Workers end what they do: a second interrupt acts a chunk later.
            pool.shutdown(cancel_futures=True)


def _result(future: Future[list[Any]], signals: HeldSignals) -> list[Any]:
    while not future.done():
        wait([future], timeout=_SECONDS_OF_DEAFNESS)
        signals.deliver()
    return future.result()


_worker_function: Callable[[Sequence[Any]], list[Any]] | None = None


def _start_worker(make: Callable[[], Callable[[Sequence[Any]], list[Any]]]) -> None:
    """Runs once in each worker process."""
    global _worker_function
    # An interrupt reaches the whole process group; the parent alone cleans up after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that was killed closes no queue: without this the workers would wait for ever.
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    _worker_function = make()


def _exit_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _results(chunk: list[Any]) -> list[Any]:
    assert _worker_function is not None
    return _worker_function(chunk)
