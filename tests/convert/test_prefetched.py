"""Tensors that were read ahead are the tensors that are asked for."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

from megatron_llava.convert.prefetched import DEPTH, Prefetched
from megatron_llava.convert.tensor_source import InMemory

NAMES = [f"tensor.{number}" for number in range(8)]


class Counting(InMemory):
    """Remembers what was read; one tensor cannot be."""

    def __init__(self, damaged: str | None = None) -> None:
        super().__init__({name: torch.full((3,), float(i)) for i, name in enumerate(NAMES)})
        self.read: list[str] = []
        self._damaged = damaged

    def tensor(self, name: str) -> Tensor:
        self.read.append(name)
        if name == self._damaged:
            raise ValueError(f"{name}: damaged")
        return super().tensor(name)


def test_every_tensor_is_read_once_with_its_checksum() -> None:
    source = Counting()
    with Prefetched(source) as ahead:
        for number, name in enumerate(NAMES):
            tensor, checksum = ahead.tensor(name)
            assert torch.equal(tensor, torch.full((3,), float(number)))
            assert checksum == f"{zlib.crc32(tensor.numpy().tobytes()):08x}"
    assert source.read == NAMES


def test_going_on_in_the_middle_and_going_back() -> None:
    source = Counting()
    with Prefetched(source) as ahead:
        for name in (NAMES[5], NAMES[6], NAMES[1], NAMES[7]):
            assert ahead.tensor(name)[0][0] == NAMES.index(name)


def test_no_more_than_depth_tensors_are_read_ahead() -> None:
    source = Counting()
    with Prefetched(source) as ahead:
        ahead.tensor(NAMES[0])
    assert len(source.read) <= 1 + DEPTH


def test_an_error_is_raised_when_its_tensor_is_asked_for() -> None:
    with Prefetched(Counting(damaged=NAMES[2])) as ahead:
        ahead.tensor(NAMES[0])
        ahead.tensor(NAMES[1])
        with pytest.raises(ValueError, match=r"tensor\.2: damaged"):
            ahead.tensor(NAMES[2])
