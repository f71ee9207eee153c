"""Proof of a conversion: every tensor compared bit by bit, and logits against transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from megatron_llava.convert.checkpoint import load_state
from megatron_llava.convert.convert import LISTED, hf_state_from_megatron
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.root_files import read_passthrough, read_root_mapping


@dataclass
class Report:
    """What became of every tensor of a Hugging Face folder; (tensors, bytes) of each group."""

    covered: list[int] = field(default_factory=lambda: [0, 0])
    passed_through: list[int] = field(default_factory=lambda: [0, 0])
    ignored: list[int] = field(default_factory=lambda: [0, 0])
    different: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A table for people."""
        groups = (
            ("covered", self.covered),
            ("passed through", self.passed_through),
            ("ignored", self.ignored),
        )
        rows = [f"{name:<15}{count:>8}{size:>18,}" for name, (count, size) in groups]
        return [f"{'':<15}{'tensors':>8}{'bytes':>18}", *rows]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal shape, dtype and bytes (so -0.0 is not 0.0, and a NaN equals itself)."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    first, second = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (left, right))
    return torch.equal(first, second)


def compare(
    reader: HFReader, tensors: Iterable[tuple[str, Tensor]], passthrough: Mapping[str, Tensor]
) -> Report:
    """Compare a folder with the tensors that a checkpoint yields for it."""
    report = Report()
    seen = set()
    for name, tensor in tensors:
        seen.add(name)
        if name not in reader:
            report.different.append(f"{name}: not in {reader.folder}")
            continue
        if not same_bits(tensor, reader.tensor(name)):
            report.different.append(f"{reader.source(name)} differs from the checkpoint")
        group = report.passed_through if name in passthrough else report.covered
        group[0] += 1
        group[1] += tensor.numel() * tensor.element_size()
    for name in reader.names():
        if name not in seen:
            report.different.append(f"{reader.source(name)}: not in the checkpoint")
            report.ignored[0] += 1
            report.ignored[1] += reader.tensor(name).nbytes
    return report


def verify(
    root: str | Path,
    hf_folder: str | Path,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
) -> Report:
    """Read both folders again and compare every tensor, bit by bit.

    iteration, dtype: as they were given to `export_hf`. ValueError listing the first tensors that
    differ or that only one side has.
    """
    root, hf_folder = Path(root), Path(hf_folder)
    mapping, passthrough = read_root_mapping(root), read_passthrough(root)
    state = load_state(root, mapping, iteration)
    pairs = (
        (name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        for name, tensor in hf_state_from_megatron(state, mapping, passthrough)
    )
    with HFReader(hf_folder) as reader:
        report = compare(reader, pairs, passthrough)
    if report.different:
        count = len(report.different)
        listed = "; ".join(report.different[:LISTED])
        raise ValueError(f"{root} and {hf_folder} differ in {count} tensors: {listed}")
    return report
