"""How a job of several ranks speaks to its user: once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import NoReturn

from megatron_llava.config.cli import exit_with_error
from megatron_llava.config.exit_codes import USER_ERROR
from megatron_llava.platform.torchrun import global_rank


@contextmanager
def on_first_rank_only() -> Iterator[None]:
    """Let one rank say what all of them would: the help, the settings, an error of the flags."""
    if global_rank() == 0:
        yield
        return
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def exit_job(error: str, program: str, code: int = USER_ERROR) -> NoReturn:
    """One line for the whole job.

    Most errors are found by every rank; the first one says it at once, and torchrun then ends the
    others while they wait here. An error that only one rank has is said after that wait.
    """
    rank = global_rank()
    if rank > 0:
        # It imports torch, without which a wrong flag is answered at once.
        from megatron_llava.platform.lost_ranks import SECONDS_FOR_RANK_ZERO

        time.sleep(SECONDS_FOR_RANK_ZERO)
    exit_with_error(error, f"{program}{f' (rank {rank})' if rank else ''}", code)
