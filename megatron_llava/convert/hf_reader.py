"""Lazy reading of a LLaVA folder of safetensors under one set of names.

Folders of transformers come in four name layouts, depending on the version that wrote them. Those
and the original code's are read under the names of the hub layout:

    layout      text                    vision                             output
    hub         language_model.model.*  vision_tower.vision_model.*        language_model.lm_head.*
    hub_flat    language_model.model.*  vision_tower.*                     language_model.lm_head.*
    model       model.language_model.*  model.vision_tower.vision_model.*  lm_head.*
    model_flat  model.language_model.*  model.vision_tower.*               lm_head.*
    original    model.*                 model.vision_tower.vision_tower.*  lm_head.*
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_llava.convert.llava_names import name_of_original

HUB, HUB_FLAT, MODEL, MODEL_FLAT = "hub", "hub_flat", "model", "model_flat"
ORIGINAL = "original"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CHECKSUM_FILE = "tensor_checksums.json"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


def detect_layout(names: Iterable[str]) -> str:
    """The name layout (see the table above). ValueError where names belong to none or to two."""
    names = list(names)
    if any(name.startswith("model.mm_projector.") for name in names):
        return ORIGINAL
    nested = {
        prefix: next((name for name in names if name.startswith(prefix)), None)
        for prefix in ("model.", "language_model.", "vision_tower.")
    }
    inside, outside = nested["model."], nested["language_model."] or nested["vision_tower."]
    if inside and outside:
        raise ValueError(f"two name layouts in one checkpoint: {inside} and {outside}")
    if not inside and not outside:
        raise ValueError("no LLaVA tensors: no name starts with model. or language_model.")
    tower = [name for name in names if name.removeprefix("model.").startswith("vision_tower.")]
    inner = [name for name in tower if "vision_tower.vision_model." in name]
    if inner and len(inner) != len(tower):
        other = next(name for name in tower if name not in inner)
        raise ValueError(f"two name layouts in one checkpoint: {inner[0]} and {other}")
    if inside:
        return MODEL if inner else MODEL_FLAT
    return HUB if inner else HUB_FLAT


def hub_name(name: str, layout: str) -> str:
    """`name` of `layout` in the hub layout."""
    if layout in (MODEL, MODEL_FLAT):
        if name.startswith("lm_head."):
            return "language_model." + name
        name = name.removeprefix("model.")
        if name.startswith("language_model."):
            name = "language_model.model." + name.removeprefix("language_model.")
    if layout in (HUB_FLAT, MODEL_FLAT) and name.startswith("vision_tower."):
        name = "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name


def read_checksums(folder: Path) -> dict[str, str]:
    """CRC-32 of each stored tensor, where the folder has them; ValueError for a damaged file."""
    path = folder / CHECKSUM_FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(entry["crc32"]) for name, entry in content["tensors"].items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no readable checksums ({error}); remove it") from None


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def data_starts(path: Path) -> dict[str, int]:
    """Where each tensor of a safetensors file begins, in bytes from the start of the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


class SafetensorsFolder:
    """Tensors of a safetensors folder (one file, or shards with an index), read one at a time.

    Opening reads headers only. ValueError, one line, naming the file or the tensor: no weights,
    an index that names an absent file or disagrees with a shard, a truncated file, a tensor twice.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._starts: dict[str, dict[str, int]] = {}
        self._checksums = read_checksums(self.folder)
        owners = self._read_headers()
        try:
            renamed = self.renamed(list(owners))
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        self._source: dict[str, tuple[str, str]] = {}
        for name, canonical in renamed.items():
            if canonical in self._source:
                raise ValueError(
                    f"{self.folder / owners[name]}: tensor {name} is "
                    f"{self._source[canonical][1]} again"
                )
            self._source[canonical] = (owners[name], name)

    def renamed(self, names: list[str]) -> dict[str, str]:
        """The name under which each stored tensor is read; tensors left out are not."""
        return {name: name for name in names}

    def _read_headers(self) -> dict[str, str]:
        """Stored tensor name -> file name, checked against the index where there is one."""
        index_path, single = self.folder / INDEX_FILE, self.folder / SINGLE_FILE
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder")
        if not index_path.exists():
            if not single.exists():
                raise ValueError(f"{self.folder}: neither {SINGLE_FILE} nor {INDEX_FILE}")
            return dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        if single.exists():
            raise ValueError(f"{self.folder}: both {SINGLE_FILE} and {INDEX_FILE}; remove one")
        try:
            weight_map: dict[str, str] = json.loads(index_path.read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{index_path}: no readable weight_map ({error})") from None
        owners: dict[str, str] = {}
        for file_name in sorted(set(weight_map.values())):
            if not (self.folder / file_name).exists():
                count = sum(owner == file_name for owner in weight_map.values())
                raise ValueError(
                    f"{index_path}: names {file_name} for {count} tensors, "
                    "but there is no such file"
                )
            for name in self._open(file_name).keys():  # noqa: SIM118 (safe_open is no mapping)
                if name in owners:
                    raise ValueError(
                        f"{self.folder / file_name}: tensor {name} is also in {owners[name]}"
                    )
                if weight_map.get(name) != file_name:
                    raise ValueError(
                        f"{self.folder / file_name}: holds {name}, which the index places in "
                        f"{weight_map.get(name, 'no file')}"
                    )
                owners[name] = file_name
        for name, file_name in weight_map.items():
            if name not in owners:
                raise ValueError(
                    f"{self.folder / file_name}: tensor {name} is named by the index but not there"
                )
        return owners

    def _open(self, file_name: str) -> Any:
        if file_name not in self._files:
            path = self.folder / file_name
            try:
                self._files[file_name] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"{path}: truncated or not a safetensors file ({path.stat().st_size} bytes; "
                    f"{reason})"
                ) from None
        return self._files[file_name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.clear()

    def fingerprint(self) -> list[list[str | int]]:
        """What tells this folder's weights from others: name, size and time of each file."""
        paths = [self.folder / name for name in sorted({file for file, _ in self._source.values()})]
        stats = [(path, path.stat()) for path in paths]
        return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def names(self) -> list[str]:
        """Hub-layout names, sorted."""
        return sorted(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def source(self, name: str) -> str:
        """`path: stored name`, for messages."""
        file_name, stored = self._source[name]
        return f"{self.folder / file_name}: {stored}"

    def _slice(self, name: str) -> Any:
        file_name, stored = self._source[name]
        return self._open(file_name).get_slice(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """ValueError for dtypes that no supported model stores."""
        code = self._slice(name).get_dtype()
        if code not in DTYPES:
            raise ValueError(f"{self.source(name)}: unsupported dtype {code}")
        return DTYPES[code]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in its stored dtype.

        Read into memory of its own: pages of a mapped file would stay with the process.
        """
        file_name, stored = self._source[name]
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        path = self.folder / file_name
        if file_name not in self._starts:
            self._starts[file_name] = data_starts(path)
        with path.open("rb", buffering=0) as file:
            file.seek(self._starts[file_name][stored])
            buffer = byte_view(tensor)
            while len(buffer):
                count = file.readinto(buffer)
                if not count:
                    raise ValueError(f"{path}: truncated in tensor {stored}")
                buffer = buffer[count:]
        self._check_bytes(stored, tensor)
        return tensor

    def _check_bytes(self, stored: str, tensor: Tensor) -> None:
        """Where a conversion of ours wrote the folder, its checksums say what the bytes were."""
        expected = self._checksums.get(stored)
        found = None if expected is None else f"{zlib.crc32(byte_view(tensor)):08x}"
        if found != expected:
            raise ValueError(
                f"{self.folder}: tensor {stored} has the checksum {found}, and {CHECKSUM_FILE} "
                f"says {expected}: the file is damaged; if the weights were changed on purpose, "
                f"remove {CHECKSUM_FILE}"
            )


class HFReader(SafetensorsFolder):
    """A LLaVA folder of any layout under hub names, `layout` says which."""

    layout: str

    def renamed(self, names: list[str]) -> dict[str, str]:
        self.layout = detect_layout(names)
        if self.layout == ORIGINAL:
            return {name: name_of_original(name, names) for name in names}
        return {name: hub_name(name, self.layout) for name in names}
