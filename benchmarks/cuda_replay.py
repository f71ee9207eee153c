"""The time of kernels alone: a CUDA graph's replay, which no launch from Python slows down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_REPLAYS = 10


def replayed_seconds(actions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of one action, for each of so many repetitions, between two events of the device.

    Args:
        actions: the same work on different memory, so that no run finds the cache full of its own
            inputs. All results are kept until the capture ends: each has memory of its own.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        actions[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for action in actions:
            kept.append(action())
    graph.replay()
    taken = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(_REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3 / _REPLAYS / len(actions))
    return taken
