"""Counting what a process sends: every collective and send that torch dispatches while it looks.

Collectives of the backward pass and asynchronous ones go through the same dispatcher, on the thread
that looks, as long as the tensors are on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_llava.observe.traffic_kinds import (
    CONTEXT,
    DATA,
    EMBEDDING,
    PIPELINE,
    TENSOR,
    VIEWS,
    Kind,
    bytes_sent,
)


class Sent(NamedTuple):
    """One kind of message."""

    operation: str
    """all-reduce, all-gather, reduce-scatter, all-to-all, broadcast or send."""

    group: str
    """torch's name of the process group."""

    ranks: int
    """Its size."""

    integers: bool
    """Whether these are integers: tiles, counts."""


# Operation, and which argument of the dispatched call has the full number of bytes: an all-gather
# puts together its output, a reduce-scatter takes apart its input, an all-to-all sends its input.
_OPERATIONS = {
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "allgather_": ("all-gather", 0),
    "_allgather_base_": ("all-gather", 0),
    "allgather_into_tensor_coalesced_": ("all-gather", 0),
    "reduce_scatter_": ("reduce-scatter", 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
    "alltoall_": ("all-to-all", 1),
    "alltoall_base_": ("all-to-all", 1),
    "broadcast_": ("broadcast", 0),
    "send": ("send", 0),
}
_SENDS_NOTHING = {"recv_", "recv_any_source_", "barrier", "monitored_barrier_"}


class CollectiveCounter(TorchDispatchMode):
    """Adds up the bytes of what is sent inside of ``with CollectiveCounter() as counter``.

    Attributes:
        payload: bytes as ``bytes_sent`` wants them, by kind of message, over groups of two ranks
            or more.
        calls: how many of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.payload: Counter[Sent] = Counter()
        self.calls: Counter[Sent] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _SENDS_NOTHING:
            return
        # An operation that is not known would be missing from the totals: better an error.
        operation, counted = _OPERATIONS[name]
        group = next(ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject))
        tensors = list(_tensors(args[counted]))
        payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if name == "alltoall_base_":
            # A rank that was dealt no view of a pack has no row to send.
            rows = len(args[counted])
            payload = payload * _share_of_others(args, group) // rows if rows else 0
        kind = Sent(
            operation, group.group_name, group.size(), not tensors[0].dtype.is_floating_point
        )
        if kind.ranks > 1:
            self.payload[kind] += payload
            self.calls[kind] += 1


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """A tensor, or all tensors of nested lists."""
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for inner in value:
            yield from _tensors(inner)


def _share_of_others(args: tuple[Any, ...], group: ProcessGroup) -> int:
    """Rows of an all-to-all's input (output, input, group, output splits, input splits) that leave
    this rank; without splits all ranks get as many."""
    rows, splits = len(args[1]), args[4]
    return rows - (splits[group.rank()] if splits else rows // group.size())


def payload_by_kind(counter: CollectiveCounter) -> tuple[dict[Kind, int], int]:
    """What was counted, by Megatron-core's process groups, which must still exist.

    Returns:
        Bytes that a rank sends by kind, and those of small messages: counts, losses, norms.
    """
    tensor_and_context = parallel_state.get_tensor_and_context_parallel_group()
    data = parallel_state.get_data_parallel_group(with_context_parallel=True)
    groups = {
        tensor_and_context.group_name: VIEWS,
        parallel_state.get_tensor_model_parallel_group().group_name: TENSOR,
        parallel_state.get_context_parallel_group().group_name: CONTEXT,
        parallel_state.get_pipeline_model_parallel_group().group_name: PIPELINE,
        data.group_name: DATA,
    }
    embedding = parallel_state.get_embedding_group(check_initialized=False)
    if embedding is not None:
        groups[embedding.group_name] = EMBEDDING
    found: Counter[Kind] = Counter()
    small = 0
    for kind, payload in sorted(counter.payload.items()):
        # Two stages use the group of all ranks for one of their two directions.
        who = PIPELINE if kind.operation == "send" else groups.get(kind.group)
        sent = bytes_sent(kind.operation, payload, kind.ranks)
        is_count = kind.integers and kind.operation == "all-reduce"
        if who is None or is_count or (who, kind.operation) == (PIPELINE, "broadcast"):
            small += sent
        else:
            found[who, kind.operation] += sent
    return dict(found), small
