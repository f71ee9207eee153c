"""Ranks that only watch each other: python watched_world.py SCENARIOS; prints how each ended.

They are forked from one process, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from megatron_llava.platform import lost_ranks
from megatron_llava.platform.lost_ranks import RankWatch

WORLD_SIZE = 3
BLOCKED = 60.0


def end_in_order(rank: int) -> None:
    time.sleep(0.4 * rank)


def refuse_on_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("a flag is wrong")
    time.sleep(BLOCKED)


def refuse_on_the_one_that_serves_the_store(rank: int) -> None:
    if rank == 0:
        raise ValueError("a flag is wrong")
    time.sleep(BLOCKED)


def fail_on_one(rank: int) -> None:
    if rank == 2:
        raise MemoryError("too much")
    time.sleep(BLOCKED)


def die_in_a_collective(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")


def die_where_the_others_hang(rank: int) -> None:
    if rank == 2:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(BLOCKED)


def stop(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(BLOCKED)


def stop_the_one_that_serves_the_store(rank: int) -> None:
    if rank == 0:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(BLOCKED)


def fail_in_a_collective_though_all_live(rank: int) -> None:
    if rank == 0:
        raise RuntimeError("NCCL error: this one is its own fault")
    time.sleep(BLOCKED)


def be_busy_for_longer_than_the_silence(rank: int) -> None:
    end = time.monotonic() + 1.5 * lost_ranks.BEATS_OF_SILENCE * lost_ranks.SECONDS_BETWEEN_BEATS
    while rank == 1 and time.monotonic() < end:
        sum(range(10_000))


def serve(rank: int, port: int, body: Callable[[int], None]) -> int:
    """What a rank does; its exit code."""
    lost_ranks.SECONDS_BETWEEN_BEATS, lost_ranks.BEATS_OF_SILENCE = 0.1, 20
    lost_ranks.SECONDS_TO_LEAVE, lost_ranks.SECONDS_FOR_RANK_ZERO = 0.5, 1.0
    store = dist.TCPStore(
        "127.0.0.1", port, WORLD_SIZE, rank == 0, timedelta(seconds=20), multi_tenant=True
    )
    try:
        with RankWatch(store, rank, WORLD_SIZE, "program", "run again"):
            time.sleep(0.3)
            body(rank)
    except ValueError as error:
        # As megatron_llava.train does.
        time.sleep(lost_ranks.SECONDS_FOR_RANK_ZERO if rank else 0)
        os.write(2, f"program (rank {rank}): error: {error}\n".encode())
        return 2
    except BaseException as error:
        os.write(2, f"traceback of rank {rank}: {error}\n".encode())
        return 1
    return 0


def run(body: Callable[[int], None]) -> dict[str, object]:
    """Exit codes and standard error of all ranks; `at_first_end` what was said when the first one
    ended, where torchrun ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    children: list[int] = []
    with tempfile.TemporaryFile() as output:
        for rank in range(WORLD_SIZE):
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 2)
                os._exit(serve(rank, port, body))
            children.append(child)
        began, statuses = time.monotonic(), [None] * WORLD_SIZE
        at_first_end = None
        while time.monotonic() - began < 30 and None in statuses:
            for rank, child in enumerate(children):
                if statuses[rank] is None:
                    pid, status = os.waitpid(child, os.WNOHANG)
                    statuses[rank] = os.waitstatus_to_exitcode(status) if pid else None
            if at_first_end is None and statuses.count(None) < WORLD_SIZE:
                at_first_end = os.pread(output.fileno(), 10_000, 0).decode().splitlines()
            # A rank that was stopped never ends.
            if statuses.count(None) == 1 and "stop" in body.__name__:
                break
            time.sleep(0.02)
        seconds = time.monotonic() - began
        for rank, child in enumerate(children):
            if statuses[rank] is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        output.seek(0)
        lines = output.read().decode().splitlines()
    result = {"codes": statuses, "lines": lines, "pids": children, "seconds": seconds}
    return result | {"at_first_end": at_first_end}


if __name__ == "__main__":
    print(json.dumps({name: run(globals()[name]) for name in sys.argv[1:]}))
