"""Find a rank that died or hangs, and end the others, which would wait for it in a collective.

Each rank has two threads. One writes a count into the rendezvous store every second and looks at
the next rank: whether its process still lives (on the same machine), and whether its count moves.
Whoever finds a rank lost writes a verdict into the store, where every rank reads it within a
second, says it in one line and ends the process. The other thread watches the first: it waits for
ever where the store does not answer, because rank 0, which serves it without torchrun, is lost.

The threads beat whatever the main thread does, so a long step, compilation or save is no silence.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal

import torch.distributed as dist

from megatron_llava.config.exit_codes import RANK_LOST, USER_ERROR
from megatron_llava.platform.processes import ProcessIdentity, has_ended, this_process
from megatron_llava.platform.torchrun import restart_count, store_address, torchrun_serves_store

SECONDS_BETWEEN_BEATS = 1.0
BEATS_OF_SILENCE = 40
"""Beats without an answer after which a rank is lost. Some calls into C++ let no thread run."""
SECONDS_FOR_RANK_ZERO = 10.0
"""How long other ranks keep a user error to themselves, which the first one may say for all."""
SECONDS_TO_LEAVE = 5.0
"""Time for the main thread to end what it is at, such as giving a checkpoint its name."""
_SECONDS_TO_TELL = 5.0

_COMMUNICATION = re.compile(r"gloo|nccl|Connection (closed|reset)|Broken pipe", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """Why all ranks stop.

    Attributes:
        kind: "lost", or "failed" for a rank that ended with a traceback, or "refused" for one that
            ends with a user error and says all that there is to say.
        text: names the rank, its machine and its process.
    """

    kind: Literal["lost", "failed", "refused"]
    text: str


class RankWatch:
    """Watches the ranks of a world while the ``with`` block runs; in a world of one it does not.

    Args:
        store: where the ranks met.
        program: the program's name in messages.
        remedy: what the user can do when a rank is lost.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, program: str, remedy: str
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._program, self._remedy = program, remedy
        prefix = f"lost_ranks/{restart_count()}"
        # A store takes one request at a time, so each thread has a connection of its own.
        self._store = dist.PrefixStore(prefix, store.clone())
        self._beats = dist.PrefixStore(prefix, store.clone())
        self._me = this_process()
        self._known: dict[int, ProcessIdentity] = {}
        self._next = _Neighbour((rank + 1) % world_size)
        self._answers = 0
        self._concluded = threading.Event()
        self._main_waits = threading.Event()
        self._stop_beating = threading.Event()
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"lost-ranks-{target.__name__}", daemon=True)
            for target in (self._beat, self._guard)
        ]

    def __enter__(self) -> RankWatch:
        if self._world_size > 1:
            self._store.set(f"process/{self._rank}", json.dumps(asdict(self._me)))
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._world_size == 1:
            return
        if error is None:
            self._leave()
            return
        if is_communication_error(error):
            self._await_verdict()
        refused = isinstance(error, (ValueError, KeyboardInterrupt))
        self._fail("refused" if refused else "failed", error)

    def _leave(self) -> None:
        """The end of a run: whoever serves the store stays until the others need it no more."""
        with suppress(RuntimeError):
            self._store.set(f"left/{self._rank}", "")
            while self._serves_store and self._store.add("left", 0) < self._world_size - 1:
                time.sleep(0.02)
        self._stop_beating.set()
        self._threads[0].join()
        with suppress(RuntimeError):
            self._store.add("left", 1)
        self._left.set()

    def _await_verdict(self) -> None:
        """Wait until it is known which rank was lost; a thread then ends the process."""
        self._main_waits.set()
        self._concluded.wait((BEATS_OF_SILENCE + 5) * SECONDS_BETWEEN_BEATS)
        while self._concluded.is_set():
            time.sleep(1.0)

    def _fail(self, kind: Literal["failed", "refused"], error: BaseException) -> None:
        """Tell the others that this rank ends with an error."""
        self._stop_beating.set()
        self._threads[0].join(2 * SECONDS_BETWEEN_BEATS)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        with suppress(RuntimeError):
            self._declare(self._store, Verdict(kind, f"{self._name(self._rank)} failed: {reason}"))
            self._tell(self._store, self._world_size)
        self._left.set()

    def _beat(self) -> None:
        store, beats = self._beats, 0
        while not self._stop_beating.wait(SECONDS_BETWEEN_BEATS):
            beats += 1
            # Before the store is asked, whose loss torch reports with a page of its own.
            if not torchrun_serves_store() and self._has_ended(0):
                self._conclude(Verdict("lost", f"{self._name(0)} is lost: its process has ended"))
                return
            try:
                store.set(f"beat/{self._rank}", str(beats))
                self._know(store, 0)
                if store.check(["verdict"]):
                    self._conclude(Verdict(**json.loads(store.get("verdict"))), store)
                    return
                reason = self._look_at_next(store)
                if reason is not None:
                    lost = Verdict("lost", f"{self._name(self._next.rank)} is lost: {reason}")
                    self._conclude(self._declare(store, lost), store)
                    return
            except RuntimeError:
                self._conclude(self._store_is_gone("is gone"))
                return
            self._answers = beats

    def _guard(self) -> None:
        """Notice that the other thread waits for the store."""
        answers, silent = -1, 0
        while not self._left.wait(SECONDS_BETWEEN_BEATS):
            silent = silent + 1 if self._answers == answers else 0
            answers = self._answers
            if silent >= BEATS_OF_SILENCE:
                self._conclude(self._store_is_gone("does not answer"))
                return

    def _look_at_next(self, store: dist.Store) -> str | None:
        """Why the next rank is lost, None while it is not."""
        following = self._next
        if following.has_left or not self._know(store, following.rank):
            return None
        reason = None
        if self._has_ended(following.rank):
            reason = "its process has ended"
        elif following.is_silent(store):
            reason = f"no sign of life for {BEATS_OF_SILENCE * SECONDS_BETWEEN_BEATS:.0f} s"
        # It says that it leaves before it ends.
        if reason is not None and store.check([f"left/{following.rank}"]):
            following.has_left, reason = True, None
        return reason

    def _know(self, store: dist.Store, rank: int) -> bool:
        """Whether a rank has said where it runs; it has nothing to say before it joins."""
        if rank not in self._known and store.check([f"process/{rank}"]):
            self._known[rank] = ProcessIdentity(**json.loads(store.get(f"process/{rank}")))
        return rank in self._known

    def _has_ended(self, rank: int) -> bool:
        """Whether the process of a rank on this machine has ended."""
        return rank in self._known and has_ended(self._known[rank], seen_from=self._me)

    def _declare(self, store: dist.Store, verdict: Verdict) -> Verdict:
        """Write a verdict, unless there is one; the one that holds."""
        text = json.dumps(asdict(verdict))
        return Verdict(**json.loads(store.compare_set("verdict", "", text)))

    def _conclude(self, verdict: Verdict, store: dist.Store | None = None) -> None:
        """Say the verdict and end the process, unless its main thread comes to its end first."""
        with self._lock:
            if self._concluded.is_set():
                return
            self._concluded.set()
        if verdict.kind != "refused":
            where = f"{self._program} (rank {self._rank})"
            sys.stdout.flush()
            os.write(2, f"{where}: error: {verdict.text}; {self._remedy}\n".encode())
        if store is not None:
            with suppress(RuntimeError):
                # A rank that is lost hears nothing.
                self._tell(store, self._world_size - (verdict.kind == "lost"))
        refused = verdict.kind == "refused"
        # The first rank to end ends all, by torchrun: the one that refused says why before.
        seconds = SECONDS_TO_LEAVE + (SECONDS_FOR_RANK_ZERO if refused else 0)
        give_up = time.monotonic() + seconds
        while (refused or not self._main_waits.is_set()) and time.monotonic() < give_up:
            if self._left.wait(0.1):
                return
        # Nothing that Python would do at its end happens: these would stay for ever.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(USER_ERROR if refused else RANK_LOST)

    def _tell(self, store: dist.Store, listeners: int) -> None:
        """Whoever serves the store stays until all that live have read the verdict."""
        told = store.add("told", 1)
        give_up = time.monotonic() + _SECONDS_TO_TELL
        while self._serves_store and told < listeners and time.monotonic() < give_up:
            time.sleep(0.05)
            told = store.add("told", 0)

    @property
    def _serves_store(self) -> bool:
        return self._rank == 0 and not torchrun_serves_store()

    def _store_is_gone(self, how: str) -> Verdict:
        where = f"the store of the rendezvous at {store_address()} {how}"
        if torchrun_serves_store():
            return Verdict("lost", f"torchrun on the first machine is lost: {where}")
        return Verdict("lost", f"{self._name(0)} is lost: {where}")

    def _name(self, rank: int) -> str:
        process = self._me if rank == self._rank else self._known.get(rank)
        return f"rank {rank}" + (f" (host {process.host}, pid {process.pid})" if process else "")


class _Neighbour:
    """The rank that this one watches."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.has_left = False
        self._count = b""
        self._silent = 0

    def is_silent(self, store: dist.Store) -> bool:
        """Whether its count has not moved for too many of this rank's own beats."""
        key = f"beat/{self.rank}"
        count = store.get(key) if store.check([key]) else b""
        self._silent = 0 if count != self._count else self._silent + 1
        self._count = count
        return self._silent >= BEATS_OF_SILENCE


def is_communication_error(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a collective or of the store."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError) and _COMMUNICATION.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
