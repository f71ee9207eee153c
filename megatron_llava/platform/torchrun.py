"""What torchrun says of this process in its environment, or is told. Imports no torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence


def local_rank() -> int:
    """This process's number on its machine, as torchrun says; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def global_rank() -> int:
    """This process's number in the job, as torchrun says; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restart_count() -> int:
    """How often torchrun has started this job anew; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def torchrun_serves_store() -> bool:
    """Whether the store that connects the ranks lives in torchrun; in rank 0 without it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_address() -> str:
    """Where the store that connects the ranks listens."""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"


def launched_ranks(launcher: Sequence[str]) -> int | None:
    """How many ranks torchrun would start with these arguments, 1 where they are no torchrun's.

    None for a number that is known only when it starts, such as ``1:4`` or ``gpu``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--nnodes", default="1")
    parser.add_argument("--nproc-per-node", "--nproc_per_node", default="1")
    known, _ = parser.parse_known_args(launcher)
    numbers = known.nnodes, known.nproc_per_node
    return int(numbers[0]) * int(numbers[1]) if all(map(str.isdecimal, numbers)) else None
