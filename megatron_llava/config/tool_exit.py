"""How a tool ends that was interrupted, or has said all that there is to say."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """End the program with one line where the user interrupts what is done inside."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted")


def run_tool(work: Callable[[], object]) -> None:
    """Do the work of a tool that leaves nothing unfinished, and print what it returns.

    An error of the user is one line, and so is an interruption. SIGTERM ends the work by an
    exception too, so that it removes its unfinished files and stops its workers.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with interruptible():
        try:
            said = work()
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
    print(said)
