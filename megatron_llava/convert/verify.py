"""Proof of a conversion: every tensor compared bit by bit, and logits against transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from megatron_llava.convert.checkpoint import hf_tensors
from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.convert import LISTED
from megatron_llava.convert.families import EMBEDDING, table
from megatron_llava.convert.grown_vocabulary import GrownTensors
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.tensor_source import TensorSource
from megatron_llava.convert.whole_model import as_path, open_whole


@dataclass
class Report:
    """What became of every tensor of a Hugging Face folder; (tensors, bytes) of each group."""

    covered: list[int] = field(default_factory=lambda: [0, 0])
    passed_through: list[int] = field(default_factory=lambda: [0, 0])
    reasons: dict[str, int] = field(default_factory=dict)  # of those passed through
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
        reasons = [f"{'':<15}{count:>8}  {reason}" for reason, count in self.reasons.items()]
        rows[2:2] = reasons
        return [f"{'':<15}{'tensors':>8}{'bytes':>18}", *rows]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal shape, dtype and bytes (so -0.0 is not 0.0, and a NaN equals itself)."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    first, second = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (left, right))
    return torch.equal(first, second)


def compare(
    reader: HFSource,
    source: TensorSource,
    passthrough: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> Report:
    """Compare a folder with the tensors that a checkpoint yields for it.

    passthrough: why the Megatron model lacks a tensor, by name. dtype: both are converted to it
    first.
    """
    report = Report()
    for name in source.names():
        if name not in reader:
            report.different.append(f"{name}: not in {reader.folder}")
            continue
        tensor, expected = (_as(side.tensor(name), dtype) for side in (source, reader))
        if not same_bits(tensor, expected):
            report.different.append(f"{reader.source(name)} differs from the checkpoint")
        group = report.passed_through if name in passthrough else report.covered
        if name in passthrough:
            reason = passthrough[name]
            report.reasons[reason] = report.reasons.get(reason, 0) + 1
        group[0] += 1
        group[1] += tensor.numel() * tensor.element_size()
    known = set(source.names())
    for name in reader.names():
        if name not in known:
            report.different.append(f"{reader.source(name)}: not in the checkpoint")
            report.ignored[0] += 1
            report.ignored[1] += reader.tensor(name).nbytes
    return report


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def verify(
    root: str | Path,
    folder: str | Path | HFSource,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> Report:
    """Read a checkpoint and a folder again and compare every tensor, bit by bit.

    Args:
        folder: of transformers or of the original code, or a source that is open already.
        iteration, dtype, base: as they were given to the conversion.

    Raises:
        ValueError: listing the first tensors that differ or that only one side has.
    """
    root = Path(root)
    reader = HFReader(folder) if isinstance(folder, (str, Path)) else folder
    mapping = read_root_mapping(root)
    checkpoint = open_whole(root, mapping, iteration, as_path(base))
    tensors = hf_tensors(checkpoint, root, mapping, None)
    source: TensorSource = tensors
    if mapping["image_token_index"] is None and EMBEDDING in reader:
        # Exported to transformers, it has been given a token; the folder that it came from has not.
        source = GrownTensors(source, max(reader.shape(EMBEDDING)[0], mapping["vocab_size"]))
    reasons = {row.hf: row.reason for row in table(mapping).passthrough}
    report = compare(reader, source, reasons, dtype)
    if report.different:
        count = len(report.different)
        listed = "; ".join(report.different[:LISTED])
        raise ValueError(f"{root} and {reader.folder} differ in {count} tensors: {listed}")
    return report
