"""The parameters of a whole model, from a checkpoint of one or from adapters beside their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from megatron_llava.convert.convert import MegatronTensors
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.hf_start import open_hf
from megatron_llava.convert.megatron_reader import MegatronReader
from megatron_llava.convert.merged_tensors import MergedTensors
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.tensor_source import TensorSource
from megatron_llava.parallel.adapter_record import check_base, read_record
from megatron_llava.parallel.checkpoint_directory import is_hf_folder


class WholeModel(TensorSource, Protocol):
    """Megatron's parameters of one rank, and what tells them from others."""

    def fingerprint(self) -> list[Any]: ...


def open_whole(
    root: Path, mapping: dict[str, Any], iteration: int | None = None, base: Path | None = None
) -> WholeModel:
    """The parameters in a folder; those of adapters are added to their base as they are read.

    Args:
        root: folder of checkpoints, of whole models, or of adapters where there is a ``base``.
        mapping: the model, as ``read_root_mapping`` gives it.
        iteration: which of them; the latest where None.
        base: the weights that the adapters were trained beside: a root, or a Hugging Face folder.

    Raises:
        ValueError: one line: a folder holds something else, or tensors do not fit.
    """
    if base is None:
        return MegatronReader(root, mapping, iteration)
    record = read_record(root)
    check_base(root, record, base)
    adapters = MegatronReader(root, mapping, iteration, record.lora)
    return MergedTensors(_open_base(base), adapters, mapping, record.lora)


def as_path(folder: str | Path | None) -> Path | None:
    """A folder that may not be given."""
    return None if folder is None else Path(folder)


def _open_base(base: Path) -> WholeModel:
    if is_hf_folder(base):
        return _OfHF(*open_hf(base))
    return MegatronReader(base, read_root_mapping(base))


class _OfHF(MegatronTensors):
    """The Megatron parameters of a Hugging Face folder."""

    def __init__(self, reader: HFReader, mapping: dict[str, Any]) -> None:
        super().__init__(reader, mapping)
        self._folder = reader

    def fingerprint(self) -> list[Any]:
        return self._folder.fingerprint()
