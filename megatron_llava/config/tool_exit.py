"""How a tool that leaves nothing unfinished ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


def run_tool(work: Callable[[], object]) -> None:
    """Do the work of a tool and print what it returns.

    An error of the user is one line, and so is an interruption. SIGTERM ends the work by an
    exception too, so that it removes its unfinished files and stops its workers.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        said = work()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(said)
