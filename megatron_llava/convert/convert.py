"""Hugging Face tensors to Megatron parameters and back, by the rows of `families`.

Both directions are strict: every tensor is consumed by a row, or passed through by a row that says
why, and every Megatron parameter is covered. Shapes are compared before any tensor is read, and
tensors are read one row at a time.
Megatron names and shapes are those of one rank (TP=1) with an unpadded vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.families import EMBEDDING, Table, table
from megatron_llava.convert.rules import Rule, Shape
from megatron_llava.convert.tensor_source import InMemory, TensorSource, converted

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


def common_dtype(
    reader: HFSource, mapping: dict[str, Any], *, any_of_them: bool = False
) -> torch.dtype:
    """The one dtype of all converted tensors; ValueError naming two tensors of two dtypes.

    any_of_them: they may differ, as all are converted to another one.
    """
    rows = table(mapping)
    names = [name for rule in rows.rules for name in rule.hf if name in reader]
    names += [row.hf for row in rows.passthrough if not row.is_buffer and row.hf in reader]
    first = reader.dtype(names[0])
    for name in names:
        dtype = reader.dtype(name)
        if dtype not in PARAMETER_DTYPES:
            raise ValueError(
                f"{reader.source(name)} is {dtype}; supported: float32, float16, bfloat16"
            )
        if dtype != first and not any_of_them:
            raise ValueError(
                f"two dtypes in one checkpoint: {reader.source(names[0])} is {first}, "
                f"{reader.source(name)} is {dtype}: give --dtype, to which all are converted"
            )
    return first


def check_hf(reader: HFSource, mapping: dict[str, Any]) -> None:
    """ValueError unless the folder has exactly the tensors that the rows of `mapping` expect."""
    expected, optional = expected_hf_shapes(table(mapping))
    found = {name: reader.shape(name) for name in reader.names()}
    check_shapes(str(reader.folder), expected, found, optional)


class MegatronTensors:
    """The Megatron parameters of one rank, each made when it is asked for (a TensorSource).

    Args:
        reader: a Hugging Face folder that `check_hf` has accepted.
        mapping: its model.
        dtype: of the parameters; the folder's where not given.
    """

    def __init__(
        self, reader: HFSource, mapping: dict[str, Any], dtype: torch.dtype | None = None
    ) -> None:
        self._reader = reader
        self._rules = {rule.megatron: rule for rule in table(mapping).rules}
        self._dtype = dtype

    def names(self) -> list[str]:
        return list(self._rules)

    def shape(self, name: str) -> Shape:
        return self._rules[name].megatron_shape

    def dtype(self, name: str) -> torch.dtype:
        return self._dtype or self._reader.dtype(self._rules[name].hf[0])

    def tensor(self, name: str) -> Tensor:
        rule = self._rules[name]
        parts = [self._reader.tensor(hf) for hf in rule.hf]
        if self._dtype is not None:
            sources = map(self._reader.source, rule.hf)
            parts = [
                converted(p, self._dtype, name) for p, name in zip(parts, sources, strict=True)
            ]
        return rule.to_megatron(parts)


class HFTensors:
    """Every Hugging Face tensor (hub layout), made when it is asked for (a TensorSource).

    ValueError where `state` or `passthrough` is incomplete, has surplus tensors or wrong shapes.

    Args:
        state: the Megatron parameters.
        mapping: the model.
        passthrough: tensors that the Megatron model lacks.
        dtype: of floating-point tensors. Where not given, parameters keep their own, and what is
            passed through has that of the embedding, which training may have changed; buffers
            keep theirs.
    """

    def __init__(
        self,
        state: TensorSource,
        mapping: dict[str, Any],
        passthrough: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        rows = table(mapping)
        found = {name: state.shape(name) for name in state.names()}
        check_shapes("the Megatron checkpoint", megatron_shapes(mapping), found)
        kept = {row.hf: row.shape for row in rows.passthrough}
        optional = [row.hf for row in rows.passthrough if row.shape is None]
        found = {name: tuple(tensor.shape) for name, tensor in passthrough.items()}
        check_shapes("the passed-through tensors", kept, found, optional)
        self.passthrough = passthrough
        self._state, self._alias, self._dtype = state, rows.alias, dtype
        self._place = {
            name: (rule, number) for rule in rows.rules for number, name in enumerate(rule.hf)
        }
        self._kept_dtype = dtype or state.dtype(self._place[EMBEDDING][0].megatron)
        self._buffers = {row.hf for row in rows.passthrough if row.is_buffer}
        self._names = list(_in_order(rows, passthrough))
        self._parts: tuple[Rule, tuple[Tensor, ...]] | None = None

    def names(self) -> list[str]:
        return self._names

    def shape(self, name: str) -> Shape:
        if name in self.passthrough:
            return tuple(self.passthrough[name].shape)
        rule, number = self._place[self._alias.get(name, name)]
        return rule.hf_shapes[number]

    def dtype(self, name: str) -> torch.dtype:
        if name in self.passthrough:
            found = self.passthrough[name].dtype
        else:
            found = self._state.dtype(self._place[self._alias.get(name, name)][0].megatron)
        return (self._target(name) or found) if found.is_floating_point else found

    def tensor(self, name: str) -> Tensor:
        if name in self.passthrough:
            found = self.passthrough[name]
        else:
            rule, number = self._place[self._alias.get(name, name)]
            # The parts of one parameter are asked for one after the other.
            if self._parts is None or self._parts[0] is not rule:
                self._parts = None
                self._parts = rule, rule.to_hf(self._state.tensor(rule.megatron))
            found = self._parts[1][number]
        target = self._target(name)
        return found if target is None else converted(found, target, name)

    def _target(self, name: str) -> torch.dtype | None:
        """The dtype of a floating-point tensor, None for its own."""
        if name in self.passthrough and name not in self._buffers:
            return self._kept_dtype
        return self._dtype


def _in_order(rows: Table, passthrough: Mapping[str, Tensor]) -> Iterator[str]:
    aliases = {original: alias for alias, original in rows.alias.items()}
    for rule in rows.rules:
        for name in rule.hf:
            yield name
            if name in aliases:
                yield aliases[name]
    yield from passthrough


def passthrough_of(reader: HFSource, mapping: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a folder that the Megatron model lacks."""
    rows = table(mapping).passthrough
    return {row.hf: reader.tensor(row.hf) for row in rows if row.hf in reader}


def megatron_state_from_hf(
    reader: HFSource, mapping: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Megatron parameters of one rank, and the tensors that are only passed through.

    Raises ValueError where tensors are missing, surplus or misshapen (see `check_hf`).
    """
    check_hf(reader, mapping)
    source = MegatronTensors(reader, mapping)
    return {name: source.tensor(name) for name in source.names()}, passthrough_of(reader, mapping)


def megatron_shapes(mapping: dict[str, Any]) -> dict[str, Shape | None]:
    """Shape of every Megatron parameter of the model, TP=1, unpadded vocabulary."""
    return {rule.megatron: rule.megatron_shape for rule in table(mapping).rules}


def hf_state_from_megatron(
    state: Mapping[str, Tensor], mapping: dict[str, Any], passthrough: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor (hub layout), one at a time.

    Raises ValueError before the first tensor where `state` or `passthrough` does not fit.
    """
    source = HFTensors(InMemory(state), mapping, passthrough)
    return ((name, source.tensor(name)) for name in source.names())
