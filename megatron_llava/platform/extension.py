"""The shared library compiled from csrc/: where it lies and what is in it.

Its entry points are plain C for ctypes, and operators that torch finds after ``load_operators``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from megatron_llava.platform.csrc_hash import csrc_hash

PACKAGE = Path(__file__).parents[1]


def library_path() -> Path | None:
    """The library, None where the package was installed without a C++ compiler."""
    return next(iter(sorted(PACKAGE.glob("_csrc*.so"))), None)


@cache
def library() -> ctypes.CDLL | None:
    """The library's C entry points, None where there is no library.

    Raises:
        RuntimeError: in a checkout, the library was made from other sources than lie there.
    """
    path = library_path()
    if path is None:
        return None
    # The library needs libtorch_cpu.so, which is found because torch has it loaded by now.
    loaded = ctypes.CDLL(str(path))
    loaded.megatron_llava_csrc_hash.restype = ctypes.c_char_p
    loaded.megatron_llava_cuda_archs.restype = ctypes.c_char_p
    csrc = PACKAGE.parent / "csrc"
    if csrc.is_dir() and csrc_hash(csrc) != loaded.megatron_llava_csrc_hash().decode():
        raise RuntimeError(
            f"{path} was compiled from other sources than {csrc} has now; compile them with "
            "python setup.py build_ext --inplace"
        )
    return loaded


def cuda_archs() -> str:
    """GPU architectures that the library has kernels for, as in "80;90"; empty for none."""
    loaded = library()
    return "" if loaded is None else loaded.megatron_llava_cuda_archs().decode()


@cache
def load_operators() -> bool:
    """Make ``torch.ops.megatron_llava`` known; False where the library has no operators."""
    if library() is None:
        return False
    torch.ops.load_library(library_path())
    return hasattr(torch.ops.megatron_llava, "visual_pack")
