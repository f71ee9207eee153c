"""What torchrun says of this process in its environment. Imports no torch."""

from __future__ import annotations

import os


def local_rank() -> int:
    """This process's number on its machine, as torchrun says; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def global_rank() -> int:
    """This process's number in the job, as torchrun says; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))
