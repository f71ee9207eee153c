"""Signals whose handlers raise, kept away from code that no exception may cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


class HeldSignals:
    """Holds SIGINT and SIGTERM back while entered, but where `through` lets them act.

    Python runs a handler between any two instructions of the main thread. Where it raises inside
    `threading.Condition` or `queue.Queue`, a lock stays taken for ever: a pool of processes then
    waits for its threads without end. Only the main thread runs handlers; elsewhere this does
    nothing. Signals that do not call a Python function are left as they are.

    Attributes:
        holding: set it where an exception out of `through` is handled: an assignment, unlike a
            call, is not interrupted.
    """

    def __init__(self) -> None:
        self.holding = True
        self._arrived: list[int] = []
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._previous[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        # From here on a signal acts at once, through this handler or the one before it.
        self.holding = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.deliver()

    def deliver(self) -> None:
        """Have what was held back act now: this raises what its handler raises."""
        while self._arrived:
            number = self._arrived.pop(0)
            self._previous[number](number, None)

    def through(self) -> _Through:
        """Context within which signals act at once, those held back first."""
        return _Through(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.holding:
            self._arrived.append(number)
        else:
            self._previous[number](number, frame)


class _Through:
    def __init__(self, signals: HeldSignals) -> None:
        self._signals = signals

    def __enter__(self) -> None:
        self._signals.holding = False
        self._signals.deliver()

    def __exit__(self, *_: object) -> None:
        self._signals.holding = True
