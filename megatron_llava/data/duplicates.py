"""Telling whether a record was there before."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np


class SeenRecords:
    """The records so far, 16 bytes of each: two of 85 million share them by chance once in 1e23."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def again(self, token_ids: np.ndarray, items: Sequence[bytes]) -> bool:
        """Whether a record with these tokens and encoded images or videos was given before.

        Args:
            token_ids: int32 [n].
            items: encoded bytes, in order.
        """
        digest = blake2b(digest_size=16)
        # Lengths first, so that no two different records are one sequence of bytes.
        digest.update(np.array([len(token_ids), *map(len, items)], dtype=np.int64).tobytes())
        digest.update(token_ids.tobytes())
        for item in items:
            digest.update(item)
        key = digest.digest()
        if key in self._digests:
            return True
        self._digests.add(key)
        return False
