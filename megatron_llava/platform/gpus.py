"""Published numbers of GPUs (NVIDIA's data sheets)."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
TERA = 10**12
GIGA = 10**9


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

    names: tuple[str, ...]
    """What the driver calls it."""


GPUS: dict[str, Gpu] = {
    "rtx-3090": Gpu(24 * GIB, 71 * TERA, 32 * GIGA, ("NVIDIA GeForce RTX 3090",)),
    "rtx-4090": Gpu(24 * GIB, 165.2 * TERA, 32 * GIGA, ("NVIDIA GeForce RTX 4090",)),
    "rtx-a6000": Gpu(48 * GIB, 154.8 * TERA, 32 * GIGA, ("NVIDIA RTX A6000",)),
    "l40s": Gpu(48 * GIB, 362 * TERA, 32 * GIGA, ("NVIDIA L40S",)),
    "a100-40gb": Gpu(
        40 * GIB, 312 * TERA, 300 * GIGA, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")
    ),
    "a100-80gb": Gpu(
        80 * GIB, 312 * TERA, 300 * GIGA, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")
    ),
    "h100-pcie": Gpu(80 * GIB, 756 * TERA, 64 * GIGA, ("NVIDIA H100 PCIe",)),
    "h100-sxm": Gpu(80 * GIB, 989.4 * TERA, 450 * GIGA, ("NVIDIA H100 80GB HBM3",)),
    "h200": Gpu(141 * GIGA, 989.4 * TERA, 450 * GIGA, ("NVIDIA H200",)),
    "b200": Gpu(180 * GIGA, 2250 * TERA, 900 * GIGA, ("NVIDIA B200",)),
}


def published_flops(name: str) -> float | None:
    """The peak of a GPU by its driver's name, ``Gpu.flops``; None of one that is not in the table.

    Only whole names count: a laptop's or a cut-down GPU has a longer name and another peak.
    """
    return next((gpu.flops for gpu in GPUS.values() if name in gpu.names), None)
