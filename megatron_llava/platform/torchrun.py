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


def restart_count() -> int:
    """How often torchrun has started this job anew; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def torchrun_serves_store() -> bool:
    """Whether the store that connects the ranks lives in torchrun; in rank 0 without it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_address() -> str:
    """Where the store that connects the ranks listens."""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
