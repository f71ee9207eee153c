"""Choose the device, and join the processes that torchrun started (or stand alone)."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megatron_llava.platform import cpu
from megatron_llava.platform.torchrun import global_rank, local_rank, world_size


def select_device(requested: str) -> str:
    """Resolve ``--device auto|cuda|cpu`` to "cuda" or "cpu".

    Raises:
        ValueError: CUDA was asked for and torch sees none.
    """
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device cuda: torch {torch.__version__} sees no GPU; use --device cpu, or install a "
            "CUDA build of torch and check the driver"
        )
    return requested


def check_transformer_impl(transformer_impl: str) -> None:
    """Raise ValueError where --transformer-impl names a package that is not installed."""
    if transformer_impl == "transformer_engine" and find_spec("transformer_engine") is None:
        raise ValueError(
            "--transformer-impl transformer_engine: the package is not installed; pip install "
            "'megatron-llava[te]', or use --transformer-impl local"
        )


def check_compiler(device: str) -> None:
    """Raise ValueError where --torch-compile has nothing to compile with."""
    if device == "cuda" and find_spec("triton") is None:
        raise ValueError(
            "--torch-compile needs the package triton, which comes with torch for CUDA: install "
            "it, or drop the flag"
        )
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if device == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ValueError(
            "--torch-compile needs a C++ compiler for what is computed on the CPU, and there is no "
            "g++ or clang++: install one, or drop the flag"
        )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` by inductor, for inputs of any length of the axes that change."""
    made: Callable[..., Any] = cpu.unredirected_compile()(function, dynamic=True)
    return made


def check_flash_attention(transformer_impl: str, attention_backend: str) -> None:
    """Raise ValueError where Transformer Engine is to use a package that is not installed."""
    asked = transformer_impl == "transformer_engine" and attention_backend == "flash"
    if asked and find_spec("flash_attn") is None:
        raise ValueError(
            "--attention-backend flash with --transformer-impl transformer_engine needs "
            "flash-attn, which is not installed: install a version that Transformer Engine "
            "supports, or give auto, fused or local"
        )


def check_precision_aware_optimizer() -> None:
    """Raise ValueError where Transformer Engine is missing, which core asks even to offload."""
    if find_spec("transformer_engine") is None:
        raise ValueError(
            "--use-precision-aware-optimizer needs Transformer Engine: the package is not "
            "installed; pip install 'megatron-llava[te]', or drop the flag"
        )


def check_fp8_device(device: str, recipe: str) -> None:
    """Raise ValueError where the GPU lacks the FP8 products that Transformer Engine needs."""
    if device != "cuda":
        return
    needed = (9, 0) if recipe == "blockwise" else (8, 9)
    found = torch.cuda.get_device_capability(local_rank())
    if found < needed:
        raise ValueError(
            f"--fp8-format with --fp8-recipe {recipe} needs compute capability "
            f"{needed[0]}.{needed[1]}, and this GPU has {found[0]}.{found[1]}: drop it, or give "
            "--fp8-emulation and --transformer-impl local"
        )


def check_tf32(device: str) -> None:
    """Raise ValueError where --tf32 asks for what the GPU cannot do."""
    if device != "cuda":
        return
    found = torch.cuda.get_device_capability(local_rank())
    if found < (8, 0):
        raise ValueError(
            f"--tf32 needs compute capability 8.0, and this GPU has {found[0]}.{found[1]}: drop it"
        )


def set_up_device(device: str, *, tf32: bool = False) -> torch.device:
    """Prepare the process for "cuda" or "cpu"; before anything imports ``megatron.core``.

    Args:
        tf32: let a GPU round the operands of float32 products.

    Returns:
        The device that this process computes on.
    """
    if device == "cpu":
        cpu.install()
        target = torch.device("cpu")
    else:
        target = torch.device("cuda", local_rank())
        torch.cuda.set_device(target)
        if tf32:
            # On a GPU "high" is TF32. Not ``fp32_precision``, which inductor of torch 2.13 cannot
            # read back.
            torch.set_float32_matmul_precision("high")
    silence_core_warnings()
    return target


def connections_remark(device: str, tensor_model_parallel_size: int) -> str | None:
    """What to tell the user about CUDA_DEVICE_MAX_CONNECTIONS, None where there is nothing to tell.

    With one connection kernels start in the order of their launch, which is what lets core overlap
    tensor-parallel communication with the products around it on GPUs before Blackwell.
    """
    wanted = device == "cuda" and tensor_model_parallel_size > 1
    if not wanted or os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1":
        return None
    return "set CUDA_DEVICE_MAX_CONNECTIONS=1 to overlap tensor-parallel communication fully"


def silence_core_warnings() -> None:
    """Hide what core says at import about optional extras and about its own use of torch.

    It warns a dozen times that it found neither Transformer Engine nor apex.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def meet(timeout_minutes: float) -> dist.Store:
    """The store that connects the ranks which torchrun started; one of its own without torchrun."""
    timeout = timedelta(minutes=timeout_minutes)
    if "RANK" not in os.environ:
        return dist.HashStore()
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    return store


def join_process_group(
    device: str, timeout_minutes: float, store: dist.Store | None = None
) -> None:
    """Start torch.distributed: NCCL or gloo under torchrun, a world of one without it.

    Args:
        store: where the ranks met, if they have.
    """
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=dist.PrefixStore("default_pg", store or meet(timeout_minutes)),
        rank=global_rank(),
        world_size=world_size(),
        timeout=timedelta(minutes=timeout_minutes),
    )


def leave_process_group() -> None:
    """Stop torch.distributed if it was started."""
    if dist.is_initialized():
        dist.destroy_process_group()
