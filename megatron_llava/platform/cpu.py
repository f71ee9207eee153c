"""Run Megatron-core on CPU over gloo: the one file that redirects its unconditional CUDA calls.

Megatron-core 0.16 computes correctly on CPU tensors, but names CUDA in passing: it asks for
``torch.cuda.current_device()``, builds scalars on ``device="cuda"``, reads the CUDA random state,
synchronises streams that do not exist and compiles small functions with inductor. Each of those
names is replaced here by what it means on a CPU, and nothing else is. No collective, no kernel and
no numerical code of core is touched. Transformer Engine and Apex, whose optimizers and norms core
would take wherever they are installed, look as if they were not.

Core also warns of CPU random numbers drawn where it expects those of a GPU; they are the same here,
and the warning is not logged.

``install()`` must run before ``megatron.core`` is imported, because core binds ``torch.compile``
and ``torch.cuda._lazy_call`` at import. ``uninstall()`` puts every name back.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch.utils._device import _device_constructors

MINIMUM_CORE_VERSION = "0.16.1"
"""Oldest megatron-core whose CUDA calls were mapped."""
UNTESTED_CORE_VERSION = "0.17"
"""First megatron-core whose CUDA calls were not mapped."""

_FOR_GPUS_ONLY = ("transformer_engine", "transformer_engine_torch", "apex")
"""Packages that core takes whatever the device is."""

_CPU = torch.device("cpu")
_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.float16: "torch.cuda.HalfTensor",
}


@dataclass(frozen=True)
class Redirection:
    """One replaced name: ``getattr(owner, name)`` becomes ``make(original)``."""

    owner: Any
    name: str
    make: Callable[[Any], Any]


def _names_cuda(device: Any) -> bool:
    """True for "cuda", "cuda:3" and the torch.device of either."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _factory_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory whose ``device="cuda"`` means the CPU."""

    @functools.wraps(original)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return original(*args, **kwargs)

    return factory


def _to_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.to`` whose "cuda" means the CPU, positionally or by name."""

    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(_CPU if _names_cuda(a) else a for a in args)
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return original(self, *args, **kwargs)

    return to


def _type_as_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.type()`` that gives the CUDA name core compares with; conversions stay."""

    @functools.wraps(original)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original(self, *args, **kwargs)
        return _CUDA_TYPE_NAMES.get(self.dtype, original(self))

    return type_name


def _stays_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.cuda()`` that returns the tensor itself."""

    @functools.wraps(original)
    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    return cuda


def _constant(value: Any) -> Callable[[Any], Any]:
    """A replacement that accepts anything and returns ``value``."""
    return lambda original: lambda *args, **kwargs: value


def _uncompiled(original: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` that returns the function as it is, called or as a decorator factory."""

    @functools.wraps(original)
    def compile_nothing(model: Any = None, **kwargs: Any) -> Any:
        return (lambda function: function) if model is None else model

    return compile_nothing


class _DefaultGenerators:
    """``torch.cuda.default_generators`` with the CPU generator under every index."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


def _set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    torch.set_rng_state(new_state)


def _get_rng_state(device: Any = "cuda") -> torch.Tensor:
    return torch.get_rng_state()


def _no_properties(device: Any = None) -> None:
    # Inductor asks what GPU its code is for, and expects this where there is none.
    raise RuntimeError("there is no GPU")


def _manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _call_now(callback: Callable[[], Any], **kwargs: Any) -> None:
    callback()


def redirections() -> list[Redirection]:
    """Every name that is replaced, in the order of replacement."""

    def replaced_by(value: Any) -> Callable[[Any], Any]:
        return lambda original: value

    cuda, random = torch.cuda, torch.cuda.random
    return [
        Redirection(cuda, "current_device", _constant(_CPU)),
        Redirection(cuda, "get_device_properties", replaced_by(_no_properties)),
        Redirection(cuda, "synchronize", _constant(None)),
        Redirection(cuda, "_lazy_call", replaced_by(_call_now)),
        Redirection(cuda, "_lazy_init", _constant(None)),
        Redirection(cuda, "default_generators", replaced_by(_DefaultGenerators())),
        Redirection(cuda, "get_rng_state", replaced_by(_get_rng_state)),
        Redirection(cuda, "set_rng_state", replaced_by(_set_rng_state)),
        Redirection(cuda, "manual_seed", replaced_by(_manual_seed)),
        Redirection(random, "get_rng_state", replaced_by(_get_rng_state)),
        Redirection(random, "set_rng_state", replaced_by(_set_rng_state)),
        Redirection(torch, "compile", _uncompiled),
        Redirection(torch.Tensor, "cuda", _stays_on_cpu),
        Redirection(torch.Tensor, "to", _to_on_cpu),
        Redirection(torch.Tensor, "type", _type_as_cuda),
        *(Redirection(torch, name, _factory_on_cpu) for name in _FACTORIES),
    ]


def _not_about_generators(record: logging.LogRecord) -> bool:
    """False for core's warning that the CPU's generator was used instead of the GPU's."""
    return not record.getMessage().startswith("CPU RNG state changed")


_RANDOM_LOGGER = logging.getLogger("megatron.core.tensor_parallel.random")
_installed: list[tuple[Any, str, Any, bool]] = []
_hidden: list[str] = []


def check_core_version(version: str | None = None) -> None:
    """Raise ValueError unless megatron-core is of the range whose CUDA calls were mapped.

    Args:
        version: the version to judge; the installed one when None.
    """
    version = version or metadata.version("megatron-core")
    mapped = f">={MINIMUM_CORE_VERSION},<{UNTESTED_CORE_VERSION}"
    if not SpecifierSet(mapped).contains(version, prereleases=True):
        raise ValueError(
            f"--device cpu: megatron-core {version} is installed, but its CUDA calls were mapped "
            f"for {mapped}; install megatron-core=={MINIMUM_CORE_VERSION}"
        )


def is_installed() -> bool:
    """True between ``install()`` and ``uninstall()``."""
    return bool(_installed)


def unredirected_compile() -> Callable[..., Any]:
    """``torch.compile`` itself; core must not find it, for it compiles for CUDA."""
    replaced = [entry[2] for entry in _installed if entry[:2] == (torch, "compile")]
    return replaced[0] if replaced else torch.compile


def install() -> None:
    """Replace the names; a second call does nothing.

    Raises:
        ValueError: megatron-core is outside the mapped range.
        RuntimeError: megatron.core was imported before, so it holds the original names.
    """
    if is_installed():
        return
    check_core_version()
    if "megatron.core" in sys.modules:
        raise RuntimeError(
            "--device cpu: megatron.core was imported before the CPU platform was set up"
        )
    for name in _FOR_GPUS_ONLY:
        if name not in sys.modules:
            # What python keeps for a module that cannot be imported.
            sys.modules[name] = None  # type: ignore[assignment]
            _hidden.append(name)
    # ``with torch.device(...)`` recognises factories by a set that it makes once: of the originals.
    _device_constructors()
    for entry in redirections():
        own = entry.name in vars(entry.owner)
        original = getattr(entry.owner, entry.name)
        _installed.append((entry.owner, entry.name, original, own))
        setattr(entry.owner, entry.name, entry.make(original))
    _RANDOM_LOGGER.addFilter(_not_about_generators)


def uninstall() -> None:
    """Put every original name back."""
    _RANDOM_LOGGER.removeFilter(_not_about_generators)
    while _hidden:
        sys.modules.pop(_hidden.pop(), None)
    while _installed:
        owner, name, original, own = _installed.pop()
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
