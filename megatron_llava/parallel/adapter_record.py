"""``lora.json``: the adapters of a checkpoint folder, and the weights that they belong to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_llava.config.lora import LoraConfig
from megatron_llava.parallel.checkpoint_directory import (
    ADAPTER_JSON,
    CheckpointError,
    find_checkpoint,
    is_hf_folder,
    latest_iteration,
)

_CHECKSUMS = "tensor_checksums.json"
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class AdapterRecord:
    """What the adapters of a folder are.

    Attributes:
        rank, alpha, target_modules: as of ``LoraConfig``; they decide shapes and products.
        dropout: the last that they were trained with; another run may have another.
        base: digest of the weights that the adapters were trained beside, see ``digest_of``.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    base: str

    @classmethod
    def of(cls, lora: LoraConfig, base: str) -> AdapterRecord:
        """The record of a run, or of imported adapters."""
        return cls(
            rank=lora.lora_rank,
            alpha=lora.lora_alpha,
            dropout=lora.lora_dropout,
            target_modules=lora.lora_target_modules,
            base=base,
        )

    @property
    def lora(self) -> LoraConfig:
        """The settings of such adapters."""
        return LoraConfig(
            lora_rank=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            lora_target_modules=self.target_modules,
        )

    @property
    def flags(self) -> str:
        """What training must be told."""
        targets = ",".join(self.target_modules)
        return (
            f"--lora-rank {self.rank} --lora-alpha {self.alpha:g} --lora-target-modules {targets}"
        )

    def text(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_adapter_record(root: str | Path) -> AdapterRecord | None:
    """What a folder says of its adapters; None where it holds whole models, or nothing.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(root) / ADAPTER_JSON
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return AdapterRecord(
            rank=int(content["rank"]),
            alpha=float(content["alpha"]),
            dropout=float(content["dropout"]),
            target_modules=tuple(content["target_modules"]),
            base=str(content["base"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no readable record of adapters ({error})") from None


def read_record(root: str | Path) -> AdapterRecord:
    """What a folder says of its adapters; CheckpointError where it holds none."""
    record = read_adapter_record(root)
    if record is None:
        raise CheckpointError(
            f"{root}: holds no adapters ({ADAPTER_JSON} is missing); give the folder that --save "
            "named in a run with --lora-rank"
        )
    return record


def refuse_adapters(root: str | Path) -> None:
    """CheckpointError where a folder that must hold a whole model holds adapters."""
    if read_adapter_record(root) is not None:
        raise CheckpointError(
            f"{root}: holds adapters without the weights that they adapt: make a whole model of "
            "both with tools/lora.py merge, or name those with --base where a tool has it"
        )


def digest_of(root: str | Path) -> str:
    """What tells the weights of a folder's latest checkpoint from others.

    Names and sizes of its files, and the checksums of its tensors where a conversion wrote it. Of a
    Hugging Face folder, see ``_hf_digest``.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    if is_hf_folder(root):
        return _hf_digest(Path(root))
    iteration = latest_iteration(root)
    directory = None if iteration is None else find_checkpoint(root, iteration)
    if directory is None:
        raise CheckpointError(f"{root}: holds no checkpoint")
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    digest = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in paths]).encode())
    if (directory / _CHECKSUMS).is_file():
        digest.update((directory / _CHECKSUMS).read_bytes())
    return digest.hexdigest()[:16]


def _hf_digest(folder: Path) -> str:
    """Names and sizes of the files of weights, and samples of their bytes.

    Whole files would take as long as loading them, and two trainings of one model have files of
    equal sizes whose weights all differ.
    """
    digest = hashlib.sha256()
    paths = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(repr((path.name, size)).encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def check_base(root: str | Path, record: AdapterRecord, base: str | Path) -> None:
    """CheckpointError where adapters do not belong to the weights in a folder."""
    refuse_adapters(base)
    found = digest_of(base)
    if record.base != found:
        raise CheckpointError(
            f"{Path(root) / ADAPTER_JSON}: the adapters were trained beside other weights "
            f"({record.base}) than those of {base} ({found}): name the folder that they were "
            "trained beside"
        )
