"""Reading ahead: the next tensors are read, converted and summed while this one is written."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Self

from torch import Tensor

from megatron_llava.convert.tensor_source import TensorSource
from megatron_llava.convert.weight_files import checksum

DEPTH = 2  # one tensor is summed while the next is read


class Prefetched:
    """Tensors of a source, contiguous, with the CRC-32 of their bytes in hexadecimal.

    One thread does all the reading, so that a source need not be safe for several; another sums.
    While a tensor is in use the DEPTH that follow it in `names` are in memory as well.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._following = dict(pairwise(source.names()))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        self._summer = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._ahead: deque[tuple[str, Future[tuple[Tensor, str]]]] = deque()

    def tensor(self, name: str) -> tuple[Tensor, str]:
        """The tensor and its checksum; what reading it raises is raised here."""
        if not self._ahead or self._ahead[0][0] != name:
            self._ahead.clear()
            self._submit(name)
        while len(self._ahead) <= DEPTH and self._ahead[-1][0] in self._following:
            self._submit(self._following[self._ahead[-1][0]])
        return self._ahead.popleft()[1].result()

    def _submit(self, name: str) -> None:
        read = self._reader.submit(self._read, name)
        self._ahead.append((name, self._summer.submit(_summed, read)))

    def _read(self, name: str) -> Tensor:
        return self._source.tensor(name).detach().contiguous()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ahead.clear()
        self._summer.shutdown(wait=False, cancel_futures=True)
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._summer.shutdown()
        self._reader.shutdown()


def _summed(read: Future[Tensor]) -> tuple[Tensor, str]:
    tensor = read.result()
    return tensor, checksum(tensor)
