"""A pool of gloo processes that lives as long as the pytest run, with a watchdog.

A job is a top-level function of an importable module. It runs on ranks 0..world_size-1, each with a
fresh process group, and returns something picklable. The ranks meet over a file, so no port can be
taken and nothing needs another try. A job that takes too long has the stacks of all its ranks
printed, and the pool starts anew.

The processes fork from one server that has imported torch and core: eight of them start in under a
second and share those pages.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch


class JobFailed(AssertionError):
    """A rank raised, died or hung; the message holds what every rank said."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    stacks: Path


class Pool:
    """Processes that are started when the first job needs them, and kept."""

    def __init__(self) -> None:
        self._context = get_context("forkserver")
        self._workers: list[_Worker] = []
        self._folder = Path(tempfile.mkdtemp(prefix="pool-"))
        self._jobs = 0

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        world_size: int = 1,
        timeout: float = 180,
        **kwargs: Any,
    ) -> list[Any]:
        """Call ``function`` on ``world_size`` ranks together and return their results by rank.

        Args:
            timeout: seconds after which the job counts as hung.

        Raises:
            JobFailed: some rank raised, died, or did not return in time.
        """
        self._grow(world_size)
        self._jobs += 1
        store = str(self._folder / f"store-{self._jobs}")
        for rank, worker in enumerate(self._workers[:world_size]):
            worker.connection.send((function, args, kwargs, rank, world_size, store))
        results = self._collect(world_size, time.monotonic() + timeout)
        errors = [f"rank {rank}: {text}" for rank, (good, text) in enumerate(results) if not good]
        if errors:
            raise JobFailed("\n".join(errors))
        return [value for _, value in results]

    def close(self) -> None:
        """End every process: by itself, so that its own children end, else by force."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(timeout=3)
            worker.process.kill()
            worker.process.join()
        self._workers = []

    def _grow(self, size: int) -> None:
        _ensure_fork_server()
        while len(self._workers) < size:
            ours, theirs = self._context.Pipe()
            stacks = self._folder / f"stacks-{len(self._workers)}-{time.monotonic_ns()}"
            process = self._context.Process(target=_serve, args=(theirs, str(stacks)))
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, stacks))

    def _collect(self, world_size: int, deadline: float) -> list[tuple[bool, Any]]:
        results: dict[int, tuple[bool, Any]] = {}
        while len(results) < world_size:
            for rank, worker in enumerate(self._workers[:world_size]):
                if rank in results or not worker.connection.poll(0.01):
                    continue
                results[rank] = _receive(worker)
                if worker.connection.closed:
                    return self._give_up(results, world_size)
            # When one rank has failed, the others wait for it for ever.
            failed = any(not good for good, _ in results.values())
            if time.monotonic() > deadline or (failed and len(results) < world_size):
                if failed:
                    time.sleep(1)
                return self._give_up(results, world_size)
        return [results[rank] for rank in range(world_size)]

    def _give_up(
        self, results: dict[int, tuple[bool, Any]], world_size: int
    ) -> list[tuple[bool, Any]]:
        """Ask the ranks that are still busy for their stacks, and start over."""
        busy = []
        for rank, worker in enumerate(self._workers[:world_size]):
            if rank not in results and worker.connection.poll():
                results[rank] = _receive(worker)
            elif rank not in results:
                busy.append(rank)
        for rank in busy:
            if self._workers[rank].process.is_alive():
                os.kill(self._workers[rank].process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        for rank in busy:
            stacks = self._workers[rank].stacks
            text = stacks.read_text() if stacks.exists() else "no stack"
            results[rank] = (False, f"did not return; its stacks:\n{text}")
        self.close()
        return [results[rank] for rank in range(world_size)]


def _receive(worker: _Worker) -> tuple[bool, Any]:
    """The answer of a rank that has one, or that it has died; then its connection is closed."""
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.connection.close()
        worker.process.join(timeout=1)
        return (False, f"died with exit code {worker.process.exitcode}")


def _ensure_fork_server() -> None:
    """Start the server of this pytest run unless it runs already."""
    forkserver.set_forkserver_preload(["distributed_preload"])
    # The server takes its path from the environment only.
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    with patch.dict(os.environ, {"PYTHONPATH": path}):
        forkserver.ensure_running()


def _let_groups_go() -> None:
    """Free the process groups of a job, and with them their threads, which wake 100 times a second.

    Models and groups refer to each other in circles, and core's cache of rotary angles refers to
    models. Left alone, a rank had 600 threads after thirty jobs, and every job took longer.
    """
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    RotaryEmbedding.forward.cache_clear()
    gc.collect()


def _serve(connection: Connection, stacks: str) -> None:
    """What a process of the pool does: run jobs."""
    stacks_file = open(stacks, "w")  # noqa: SIM115 - faulthandler writes to it until the end
    faulthandler.register(signal.SIGUSR1, file=stacks_file, all_threads=True)
    import torch
    import torch.distributed as dist

    from megatron_llava.platform.device import leave_process_group

    torch.set_num_threads(1)
    while True:
        try:
            function, args, kwargs, rank, world_size, store = connection.recv()
        except (EOFError, ConnectionError):
            return
        os.environ["WORLD_SIZE"] = str(world_size)
        try:
            # A lone rank needs no file, which a test of a full disk would break.
            meeting = dist.FileStore(store, world_size) if world_size > 1 else dist.HashStore()
            dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world_size)
            answer = (True, function(*args, **kwargs))
        except BaseException:
            answer = (False, traceback.format_exc())
        finally:
            leave_process_group()
            _let_groups_go()
        try:
            connection.send(answer)
        except ConnectionError:
            return  # the pool gave this job up
        except Exception:
            connection.send((False, traceback.format_exc()))
