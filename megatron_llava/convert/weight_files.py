"""One file of weights: its tensors' names, shapes and dtypes, and any of them on demand."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_llava.convert.rules import Shape

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
"""safetensors' codes of the dtypes that a supported folder may hold."""


class WeightFile(Protocol):
    """What a folder asks its files."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> Shape: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def tensor(self, name: str) -> Tensor: ...


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def checksum(tensor: Tensor) -> str:
    """The CRC-32 of a contiguous tensor's bytes, in hexadecimal."""
    return f"{zlib.crc32(byte_view(tensor)):08x}"


class SafetensorsFile:
    """A safetensors file. ValueError where it is truncated or none.

    The library checks the header. Tensors are read into memory of their own: pages of a mapped file
    would stay with the process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            opened = safe_open(path, framework="pt")
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{path}: truncated or not a safetensors file ({path.stat().st_size} bytes; "
                f"{reason})"
            ) from None
        header.pop("__metadata__", None)
        assert sorted(header) == sorted(opened.keys())
        self._entries, self._start = header, 8 + length

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> Shape:
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """ValueError for dtypes that no supported model stores."""
        code = self._entries[name]["dtype"]
        if code not in DTYPES:
            raise ValueError(f"{self._path}: {name}: unsupported dtype {code}")
        return DTYPES[code]

    def tensor(self, name: str) -> Tensor:
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._start + self._entries[name]["data_offsets"][0])
            buffer = byte_view(tensor)
            while len(buffer):
                count = file.readinto(buffer)
                if not count:
                    raise ValueError(f"{self._path}: truncated in tensor {name}")
                buffer = buffer[count:]
        return tensor


class TorchFile:
    """A `.bin` file of torch's own format. ValueError where it is truncated or none.

    Nothing is executed: only tensors are unpickled. Files of today's format are mapped into memory,
    older ones are read whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            stored = _load(path)
        except Exception as error:  # pickle, zip and torch raise anything for a damaged file
            raise ValueError(
                f"{path}: truncated or no file of tensors ({path.stat().st_size} bytes; "
                f"{type(error).__name__})"
            ) from None
        if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
            raise ValueError(f"{path}: holds more than named tensors")
        self._tensors: dict[str, Tensor] = stored

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> Shape:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach().clone().contiguous()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)
