"""Flags of Megatron that a reader of its documentation may give, and why they are none here."""

from __future__ import annotations

_GRAPHS = (
    "a CUDA graph replays kernels for one shape, and the positions, samples and longest sample of "
    "packs change from step to step; drop it"
)

NOT_OFFERED = {
    "--tp-comm-overlap": (
        "Transformer Engine overlaps products with buffers of one shape for the whole run, and "
        "packs have many lengths; drop it, and set CUDA_DEVICE_MAX_CONNECTIONS=1 for the overlap "
        "that Megatron-core has by itself"
    ),
    "--main-grads-dtype": (
        "the optimizer reads gradients in the type that they are reduced in; give "
        "--grad-reduce-in-bf16 for bfloat16, or drop it"
    ),
    "--enable-cuda-graph": _GRAPHS,
    "--external-cuda-graph": _GRAPHS,
    "--cuda-graph-impl": _GRAPHS,
    "--cuda-graph-scope": _GRAPHS,
}
"""The reason that ends the message, by flag."""
