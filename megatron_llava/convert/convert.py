"""Hugging Face tensors to Megatron parameters and back, by the rows of `families`.

Both directions are strict: every tensor is consumed by a row, or passed through by a row that says
why, and every Megatron parameter is covered. Shapes are compared before any tensor is read.
Megatron names and shapes are those of one rank (TP=1) with an unpadded vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_llava.convert.families import Table, table
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.rules import Shape

PARAMETER_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LISTED = 10  # how many names an error lists


def check_shapes(
    what: str,
    expected: Mapping[str, Shape | None],
    found: Mapping[str, Shape],
    optional: Iterable[str] = (),
) -> None:
    """ValueError naming the missing, surplus and misshapen tensors, in one line.

    expected: the shape of each name, None where any shape will do. optional: names that may lack.
    """
    may_lack = set(optional)
    lines = [
        f"missing {name}: expected shape {shape}, found none"
        for name, shape in expected.items()
        if name not in found and name not in may_lack
    ]
    lines += [
        f"surplus {name}: expected none, found shape {shape}"
        for name, shape in found.items()
        if name not in expected
    ]
    lines += [
        f"misshapen {name}: expected shape {shape}, found {found[name]}"
        for name, shape in expected.items()
        if name in found and shape is not None and tuple(found[name]) != tuple(shape)
    ]
    if lines:
        more = f" (the first {LISTED})" if len(lines) > LISTED else ""
        listed = "; ".join(lines[:LISTED])
        raise ValueError(f"{what}: {len(lines)} tensors do not fit{more}: {listed}")


def expected_hf_shapes(rows: Table) -> tuple[dict[str, Shape | None], set[str]]:
    """Shape of every Hugging Face tensor of the model, and the names that may be absent."""
    expected: dict[str, Shape | None] = {}
    for rule in rows.rules:
        for name, shape in zip(rule.hf, rule.hf_shapes, strict=True):
            assert name not in expected, f"{name} is consumed twice"
            expected[name] = shape
    for alias, original in rows.alias.items():
        expected[alias] = expected[original]
    for row in rows.passthrough:
        assert row.hf not in expected, f"{row.hf} is both consumed and passed through"
        expected[row.hf] = row.shape
    return expected, {row.hf for row in rows.passthrough if row.shape is None}


def common_dtype(reader: HFReader, mapping: dict[str, Any]) -> torch.dtype:
    """The one dtype of all converted tensors; ValueError naming two tensors of two dtypes."""
    names = [name for rule in table(mapping).rules for name in rule.hf if name in reader]
    first = reader.dtype(names[0])
    for name in names:
        dtype = reader.dtype(name)
        if dtype not in PARAMETER_DTYPES:
            raise ValueError(
                f"{reader.source(name)} is {dtype}; supported: float32, float16, bfloat16"
            )
        if dtype != first:
            raise ValueError(
                f"two dtypes in one checkpoint: {reader.source(names[0])} is {first}, "
                f"{reader.source(name)} is {dtype}"
            )
    return first


def check_hf(reader: HFReader, mapping: dict[str, Any]) -> None:
    """ValueError unless the folder has exactly the tensors that the rows of `mapping` expect."""
    expected, optional = expected_hf_shapes(table(mapping))
    found = {name: reader.shape(name) for name in reader.names()}
    check_shapes(str(reader.folder), expected, found, optional)


def megatron_state_from_hf(
    reader: HFReader, mapping: dict[str, Any], progress: Progress | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Megatron parameters of one rank, and the tensors that are only passed through.

    Raises ValueError where tensors are missing, surplus or misshapen (see `check_hf`).
    """
    check_hf(reader, mapping)
    rows = table(mapping)
    state = {}
    for rule in rows.rules:
        tensor = rule.to_megatron([reader.tensor(name) for name in rule.hf])
        state[rule.megatron] = tensor
        if progress is not None:
            progress.add(rule.megatron, tensor)
    passthrough = {row.hf: reader.tensor(row.hf) for row in rows.passthrough if row.hf in reader}
    return state, passthrough


def megatron_shapes(mapping: dict[str, Any]) -> dict[str, Shape | None]:
    """Shape of every Megatron parameter of the model, TP=1, unpadded vocabulary."""
    return {rule.megatron: rule.megatron_shape for rule in table(mapping).rules}


def hf_state_from_megatron(
    state: Mapping[str, Tensor], mapping: dict[str, Any], passthrough: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every Hugging Face tensor (hub layout), one Megatron parameter at a time.

    Raises ValueError before the first tensor where `state` or `passthrough` is incomplete, has
    surplus tensors or wrong shapes.
    """
    rows = table(mapping)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes("the Megatron checkpoint", megatron_shapes(mapping), found)
    kept = {row.hf: row.shape for row in rows.passthrough}
    optional = [row.hf for row in rows.passthrough if row.shape is None]
    found = {name: tuple(tensor.shape) for name, tensor in passthrough.items()}
    check_shapes("the passed-through tensors", kept, found, optional)
    return _hf_tensors(rows, state, passthrough)


def _hf_tensors(
    rows: Table, state: Mapping[str, Tensor], passthrough: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    aliases = {original: alias for alias, original in rows.alias.items()}
    for rule in rows.rules:
        for name, tensor in zip(rule.hf, rule.to_hf(state[rule.megatron]), strict=True):
            yield name, tensor
            if name in aliases:
                yield aliases[name], tensor
    yield from passthrough.items()
