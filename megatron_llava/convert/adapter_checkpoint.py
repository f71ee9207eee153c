"""Checkpoints of adapters: read, written from other tensors, and merged into whole models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_llava.config.lora import LoraConfig
from megatron_llava.convert.adapter_rules import adapter_rules
from megatron_llava.convert.convert import megatron_shapes
from megatron_llava.convert.families import table
from megatron_llava.convert.megatron_reader import MegatronReader
from megatron_llava.convert.megatron_writer import write_megatron
from megatron_llava.convert.output_folder import check_room, pending_folder, refuse_existing
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.root_files import (
    HF_FOLDER,
    read_passthrough,
    read_root_mapping,
    write_root_files,
)
from megatron_llava.convert.rules import Rule, Shape
from megatron_llava.convert.single_process import single_process
from megatron_llava.convert.tensor_source import TensorSource, stored_bytes
from megatron_llava.parallel.adapter_record import (
    AdapterRecord,
    check_base,
    read_adapter_record,
)
from megatron_llava.parallel.checkpoint_directory import (
    ADAPTER_JSON,
    RELEASE,
    TRACKER,
    CheckpointError,
    iteration_directory,
)


def read_record(root: Path) -> AdapterRecord:
    """What a folder says of its adapters; CheckpointError where it holds none."""
    record = read_adapter_record(root)
    if record is None:
        raise CheckpointError(
            f"{root}: holds no adapters ({ADAPTER_JSON} is missing); give the folder that --save "
            "named in a run with --lora-rank"
        )
    return record


def write_adapters(
    root: Path,
    base_root: Path,
    mapping: dict[str, Any],
    source: TensorSource,
    record: AdapterRecord,
    progress: Progress | None = None,
) -> None:
    """Write a root (`release`) of adapters and what is beside them, for training to start from.

    Args:
        base_root: the weights that they adapt, whose other files travel along.
        source: Megatron parameters: factors, projector, newline.
    """
    check_room(root, stored_bytes(source))
    task = {"to": "adapters", "record": record.text()}
    with single_process(), pending_folder(root, task) as (pending, journal):
        _write_beside(pending, base_root, mapping, source)
        (pending / ADAPTER_JSON).write_text(record.text(), encoding="utf-8")
        release = iteration_directory(pending, RELEASE)
        write_megatron(release, mapping, source, journal, progress, lora=record.lora)
        (pending / TRACKER).write_text(RELEASE)


def merge_adapters(
    root: Path,
    base_root: Path,
    merged_root: Path,
    iteration: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Add adapters to the weights that they stand beside: the root of a whole model (`release`).

    Every weight becomes W + alpha / rank * B A, computed in float32 and rounded once to the dtype
    of W; the projector, the newline and a tower that was trained are those of the run.

    Args:
        root: the folder of the adapters.
        base_root: of the weights that they were trained beside.
        merged_root: to be written; must not exist.
        iteration: which of the adapters' checkpoints; the latest where None.

    Raises:
        ValueError: one line: a folder holds something else, or tensors do not fit.
    """
    refuse_existing(merged_root)
    record = read_record(root)
    check_base(root, record, base_root)
    mapping = read_root_mapping(root)
    adapters = MegatronReader(root, mapping, iteration, record.lora)
    base = MegatronReader(base_root, read_root_mapping(base_root))
    source = MergedTensors(base, adapters, mapping, record.lora)
    check_room(merged_root, stored_bytes(source))
    task = {"to": "merged", "from": [base.fingerprint(), adapters.fingerprint()]}
    with single_process(), pending_folder(merged_root, task) as (pending, journal):
        _write_beside(pending, base_root, mapping, source)
        write_megatron(iteration_directory(pending, RELEASE), mapping, source, journal, progress)
        (pending / TRACKER).write_text(RELEASE)


def _write_beside(
    root: Path, base_root: Path, mapping: dict[str, Any], source: TensorSource
) -> None:
    """The files of a root beside its checkpoints."""
    shutil.copytree(base_root / HF_FOLDER, root / HF_FOLDER, dirs_exist_ok=True)
    write_root_files(root, mapping, read_passthrough(base_root), source.dtype(source.names()[0]))


class MergedTensors:
    """The parameters of a whole model with its adapters added, each made when it is asked for.

    Args:
        base: the frozen weights, whose dtypes the result has.
        adapters: factors, and the parameters that the run has its own of.
        mapping: the model of the run.
        lora: what the adapters are.
    """

    def __init__(
        self,
        base: TensorSource,
        adapters: TensorSource,
        mapping: dict[str, Any],
        lora: LoraConfig,
    ) -> None:
        self._base, self._adapters, self._scaling = base, adapters, lora.scaling
        self._shapes = megatron_shapes(mapping)
        self._rules = {rule.megatron: rule for rule in table(mapping).rules}
        self._factors = {rule.megatron: rule for rule in adapter_rules(mapping, lora)}
        self._of_run = set(adapters.names())

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        shape = self._shapes[name]
        assert shape is not None
        return shape

    def dtype(self, name: str) -> torch.dtype:
        # The run may have trained in another one.
        return self._base.dtype(self._base.names()[0])

    def tensor(self, name: str) -> Tensor:
        if name in self._of_run:
            return self._adapters.tensor(name).to(self.dtype(name))
        weight = self._base.tensor(name)
        factor = name.removesuffix("weight") + "lora."
        if factor + "a" not in self._factors:
            return weight
        a, b = (self._parts(factor + letter) for letter in "ab")
        rule = self._rules[name]
        parts = list(rule.to_hf(weight.float()))
        for number, place in enumerate(_places(rule, self._factors[factor + "a"])):
            parts[place] = parts[place] + self._scaling * (b[number] @ a[number])
        return rule.to_megatron(parts).to(weight.dtype)

    def _parts(self, name: str) -> Sequence[Tensor]:
        return self._factors[name].to_hf(self._adapters.tensor(name).float())


def _places(rule: Rule, factors: Rule) -> list[int]:
    """Which of the tensors that a fused weight is made of the factors belong to."""
    linears = [name.removesuffix("weight") for name in rule.hf]
    return [linears.index(name.removesuffix("lora_A.weight")) for name in factors.hf]
