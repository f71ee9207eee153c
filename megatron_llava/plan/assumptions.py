"""What is assumed about reaching the published numbers of GPUs."""

from __future__ import annotations

from megatron_llava.platform.gpus import GIB

UTILISATION = 0.4
"""Of the peak, that matrix products are assumed to reach. Not measured."""

LINK_UTILISATION = 0.7
"""Of the link's rate, that collectives are assumed to reach. Not measured."""

RESERVE = 2 * GIB
"""Of a GPU's memory that is left to the CUDA context, NCCL, workspaces and fragmentation. Not
measured."""
