"""Published numbers of GPUs (NVIDIA's data sheets), and what is assumed about reaching them."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
TERA = 10**12
GIGA = 10**9

UTILISATION = 0.4
"""Of the peak, that matrix products are assumed to reach. Not measured."""

LINK_UTILISATION = 0.7
"""Of the link's rate, that collectives are assumed to reach. Not measured."""

RESERVE = 2 * GIB
"""Of a GPU's memory that is left to the CUDA context, NCCL, workspaces and fragmentation. Not
measured."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    memory: int
    """Bytes."""

    flops: float
    """Dense bfloat16 products accumulated in float32, per second, peak."""

    link: float
    """Bytes per second to other GPUs of the machine, one direction: NVLink, else PCIe. Taken for
    what goes to other machines as well."""


GPUS: dict[str, Gpu] = {
    "rtx-3090": Gpu(24 * GIB, 71 * TERA, 32 * GIGA),
    "rtx-4090": Gpu(24 * GIB, 165.2 * TERA, 32 * GIGA),
    "rtx-a6000": Gpu(48 * GIB, 154.8 * TERA, 32 * GIGA),
    "l40s": Gpu(48 * GIB, 362 * TERA, 32 * GIGA),
    "a100-40gb": Gpu(40 * GIB, 312 * TERA, 300 * GIGA),
    "a100-80gb": Gpu(80 * GIB, 312 * TERA, 300 * GIGA),
    "h100-pcie": Gpu(80 * GIB, 756 * TERA, 64 * GIGA),
    "h100-sxm": Gpu(80 * GIB, 989.4 * TERA, 450 * GIGA),
    "h200": Gpu(141 * GIGA, 989.4 * TERA, 450 * GIGA),
    "b200": Gpu(180 * GIGA, 2250 * TERA, 900 * GIGA),
}
