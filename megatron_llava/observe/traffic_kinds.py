"""Who sends what in training, and how much of a collective's tensors one rank sends."""

from __future__ import annotations

from collections.abc import Callable

TENSOR, CONTEXT, VIEWS = "tensor-parallel", "context-parallel", "shared views"
PIPELINE, DATA, EMBEDDING = "pipeline", "data-parallel", "tied embeddings"

Kind = tuple[str, str]
"""(who talks, operation): ("tensor-parallel", "all-reduce")."""

_SHARES: dict[str, Callable[[int, int], int]] = {
    "all-reduce": lambda payload, ranks: 2 * payload * (ranks - 1) // ranks,
    "all-gather": lambda payload, ranks: payload * (ranks - 1) // ranks,
    "reduce-scatter": lambda payload, ranks: payload * (ranks - 1) // ranks,
    "all-to-all": lambda payload, ranks: payload,
    "broadcast": lambda payload, ranks: payload * (ranks - 1) // ranks,
    "send": lambda payload, ranks: payload,
}


def bytes_sent(operation: str, payload: int, ranks: int) -> int:
    """Bytes that one rank sends, in the algorithms that send the least (rings).

    Args:
        operation: as in ``collective_counter.Sent``.
        payload: bytes of the full tensors. Of an all-reduce and a broadcast any rank's tensor, of
            an all-gather its output, of a reduce-scatter its input, of an all-to-all and a send
            what is for other ranks.
        ranks: size of the group. A broadcast is averaged over its ranks.
    """
    return _SHARES[operation](payload, ranks)
