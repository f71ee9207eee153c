"""Reading ahead: the next tensor is read, converted and summed while this one is written."""

from __future__ import annotations

import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Self

from torch import Tensor

from megatron_llava.convert.tensor_source import TensorSource
from megatron_llava.convert.weight_files import byte_view


class Prefetched:
    """Tensors of a source, contiguous, with the CRC-32 of their bytes in hexadecimal.

    One thread does all the reading, so that a source need not be safe for several. While a tensor
    is in use the one that follows it in `names` is in memory as well.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._following = dict(pairwise(source.names()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        self._ahead: tuple[str, Future[tuple[Tensor, str]]] | None = None

    def tensor(self, name: str) -> tuple[Tensor, str]:
        """The tensor and its checksum; what reading it raises is raised here."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == name:
            future = ahead[1]
        else:
            future = self._thread.submit(self._read, name)
        result = future.result()
        if name in self._following:
            following = self._following[name]
            self._ahead = following, self._thread.submit(self._read, following)
        return result

    def _read(self, name: str) -> tuple[Tensor, str]:
        tensor = self._source.tensor(name).detach().contiguous()
        return tensor, f"{zlib.crc32(byte_view(tensor)):08x}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ahead = None
        self._thread.shutdown(cancel_futures=True)
