"""What the ranks' step times say together: shares of all time, and which rank is slowest."""

from __future__ import annotations

import socket
import statistics
from typing import Any

import torch
import torch.distributed as dist

from megatron_llava.config.log import LoggingConfig
from megatron_llava.training.interval import Interval
from megatron_llava.training.step_times import (
    COMMUNICATION,
    COMPUTE,
    DATA,
    LANGUAGE,
    PARTS,
    PROJECTOR,
    TOWER,
    StepTimes,
)

_WORK = (TOWER, PROJECTOR, LANGUAGE, COMPUTE)
_COLUMNS = (DATA, COMPUTE, COMMUNICATION)


def report_times(
    times: StepTimes, logging: LoggingConfig, interval: Interval, device: torch.device
) -> list[str]:
    """Add to the record of an interval what ``times`` counted. All ranks call this together.

    Returns:
        Lines that say it.
    """
    lines = []
    ranks = times_of_ranks(times.take(), device)
    if logging.timing_log_level > 0:
        percent = shares(ranks)
        interval.details.update(percent)
        lines.append(" | ".join(f"{name[:-2]} {value:.1f} %" for name, value in percent.items()))
    if logging.log_straggler:
        rank, table = slowest_rank(ranks, interval.steps)
        host = host_of(rank)
        interval.details.update({"slowest rank": rank, "slowest host": host, **table})
        lines.append(straggler_line(rank, host, table))
    return lines


def times_of_ranks(seconds: dict[str, float], device: torch.device) -> list[dict[str, float]]:
    """What each rank took for each part, by rank."""
    own = torch.tensor([seconds[part] for part in PARTS], dtype=torch.float64, device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return [dict(zip(PARTS, row.tolist(), strict=True)) for row in gathered]


def shares(ranks: list[dict[str, float]]) -> dict[str, float]:
    """Percent of the time of all ranks together by part, those without any left out."""
    total = sum(sum(rank.values()) for rank in ranks)
    sums = {part: sum(rank[part] for rank in ranks) for part in PARTS}
    return {f"time {part} %": 100 * sums[part] / total for part in PARTS if sums[part]}


def slowest_rank(ranks: list[dict[str, float]], steps: int) -> tuple[int, dict[str, float]]:
    """The rank with the most seconds of data and compute, and the table over ranks.

    Returns:
        The rank; and seconds of a step in the minimum, median and maximum of the ranks, for data,
        compute and communication.
    """
    rows = [
        {
            DATA: rank[DATA] / steps,
            COMPUTE: sum(rank[part] for part in _WORK) / steps,
            COMMUNICATION: rank[COMMUNICATION] / steps,
        }
        for rank in ranks
    ]
    busy = [row[DATA] + row[COMPUTE] for row in rows]
    table = {
        f"{column} s/step {name}": function([row[column] for row in rows])
        for column in _COLUMNS
        for name, function in (("min", min), ("median", statistics.median), ("max", max))
    }
    table["busy s/step median"] = statistics.median(busy)
    table["busy s/step max"] = max(busy)
    return busy.index(max(busy)), table


def host_of(rank: int) -> str:
    """The name of the machine that a rank runs on. All ranks call this together."""
    name: list[Any] = [socket.gethostname()]
    dist.broadcast_object_list(name, rank)
    return name[0]


def straggler_line(rank: int, host: str, table: dict[str, float]) -> str:
    """The table in words."""
    columns = ", ".join(
        f"{column} "
        + " / ".join(f"{table[f'{column} s/step {name}']:.3f}" for name in ("min", "median", "max"))
        for column in _COLUMNS
    )
    most, median = table["busy s/step max"], table["busy s/step median"]
    return (
        f"slowest rank {rank} on {host}: {most:.3f} s/step of data and compute, median "
        f"{median:.3f}; min / median / max of the ranks: {columns}"
    )
