"""The trainer, with a signal that a rank sends itself at a known place.

    python signalled_train.py '{"rank": 1, "signal": "SIGKILL", "place": "save", "call": 1}' FLAGS

Places are the model's forward pass and the writing of a checkpoint, when its temporary folder is
there; calls count from 0. With "group" the signal goes to the children of the rank too, with
"children" to one of them alone, and "beats" shortens the silence after which a rank counts as lost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def signalling(function: Callable[..., Any], fault: dict[str, Any]) -> Callable[..., Any]:
    """The function, sending this process the signal before a certain call."""
    calls = iter(range(10**6))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == fault["call"] and int(os.environ["RANK"]) == fault["rank"]:
            send = os.killpg if fault.get("group") else os.kill
            to = multiprocessing.active_children()[0].pid if fault.get("children") else os.getpid()
            send(to, getattr(signal, fault["signal"]))
        return function(*args, **kwargs)

    return called


def main(fault: dict[str, Any], arguments: list[str]) -> None:
    from megatron_llava import train
    from megatron_llava.platform import lost_ranks
    from megatron_llava.platform.device import set_up_device

    set_up_device("cpu")
    from megatron.core import dist_checkpointing

    from megatron_llava.models.llava import LlavaModel

    lost_ranks.BEATS_OF_SILENCE = fault.get("beats", lost_ranks.BEATS_OF_SILENCE)
    if fault["place"] == "forward":
        LlavaModel.forward = signalling(LlavaModel.forward, fault)
    else:
        dist_checkpointing.save = signalling(dist_checkpointing.save, fault)
    train.main(arguments)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
