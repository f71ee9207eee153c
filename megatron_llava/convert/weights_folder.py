"""The weights of a folder: one file, or several with an index; safetensors, or torch's `.bin`."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from megatron_llava.convert.weight_files import SafetensorsFile, TorchFile, WeightFile, checksum

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
CHECKSUM_FILE = "tensor_checksums.json"


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


def check_checksum(where: str, name: str, tensor: Tensor, checksums: dict[str, str]) -> None:
    """ValueError where a tensor's bytes are not those that a conversion of ours wrote."""
    expected = checksums.get(name)
    if expected is None:
        return
    found = checksum(tensor)
    if found != expected:
        raise ValueError(
            f"{where}: tensor {name} has the checksum {found}, and {CHECKSUM_FILE} says "
            f"{expected}: the file is damaged; if the weights were changed on purpose, remove "
            f"{CHECKSUM_FILE}"
        )


class WeightsFolder:
    """Tensors of a folder, read one at a time.

    Opening reads headers only. ValueError, one line, naming the file or the tensor: no weights,
    an index that names an absent file or disagrees with a shard, a truncated file, a tensor twice.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[str, WeightFile] = {}
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
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder")
        for single, index in ((SINGLE_FILE, INDEX_FILE), (TORCH_FILE, TORCH_INDEX_FILE)):
            has_single, has_index = ((self.folder / name).exists() for name in (single, index))
            if has_single and has_index:
                raise ValueError(f"{self.folder}: both {single} and {index}; remove one")
            if has_single:
                return dict.fromkeys(self._open(single).names(), single)
            if has_index:
                return self._read_index(self.folder / index)
        raise ValueError(
            f"{self.folder}: neither {SINGLE_FILE} nor {INDEX_FILE}, nor {TORCH_FILE} nor its index"
        )

    def _read_index(self, index_path: Path) -> dict[str, str]:
        try:
            weight_map = json.loads(index_path.read_text())["weight_map"]
            files = sorted({str(file) for file in weight_map.values()})
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError, TypeError, AttributeError) as e:
            raise ValueError(f"{index_path}: no readable weight_map ({e})") from None
        owners: dict[str, str] = {}
        for file_name in files:
            if not (self.folder / file_name).exists():
                count = sum(owner == file_name for owner in weight_map.values())
                raise ValueError(
                    f"{index_path}: names {file_name} for {count} tensors, "
                    "but there is no such file"
                )
            for name in self._open(file_name).names():
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

    def _open(self, file_name: str) -> WeightFile:
        if file_name not in self._files:
            path = self.folder / file_name
            made = TorchFile(path) if path.suffix == ".bin" else SafetensorsFile(path)
            self._files[file_name] = made
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
        """The names under which tensors are read, sorted."""
        return sorted(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def source(self, name: str) -> str:
        """`path: stored name`, for messages."""
        file_name, stored = self._source[name]
        return f"{self.folder / file_name}: {stored}"

    def shape(self, name: str) -> tuple[int, ...]:
        file_name, stored = self._source[name]
        return self._open(file_name).shape(stored)

    def dtype(self, name: str) -> torch.dtype:
        """ValueError for dtypes that no supported model stores."""
        file_name, stored = self._source[name]
        return self._open(file_name).dtype(stored)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in its stored dtype and in memory of its own.

        ValueError where its bytes are not those that a conversion of ours wrote.
        """
        file_name, stored = self._source[name]
        tensor = self._open(file_name).tensor(stored)
        check_checksum(str(self.folder), stored, tensor, self._checksums)
        return tensor
