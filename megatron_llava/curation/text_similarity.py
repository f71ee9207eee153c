"""Jaccard similarity of texts, estimated by MinHash (Broder 1997), and an index of similar ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_llava.text.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from megatron_llava.text.templates import Turn

DEFAULT_SIMILARITY = 0.8
MIN_SIMILARITY = 0.3
SHINGLE = 3
"""Words in a shingle."""

_PERMUTATIONS = 128  # the estimate's standard deviation is 0.035 at a similarity of 0.8
_FOUND = 0.99  # least probability that the index finds a text of just the wanted similarity
# Chinese and Japanese are written without spaces: each character is a word. Signs are words too,
# since "x + y" and "x - y" are different.
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+|[^\w\s]")
_PLACEHOLDER = re.compile(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}")


def shingles(text: str) -> set[str]:
    """The runs of SHINGLE words of a text; one of all its words where it has fewer.

    Case, white space and placeholders of images do not count.
    """
    words = _WORD.findall(_PLACEHOLDER.sub(" ", text).casefold())
    last = max(len(words) - SHINGLE, 0)
    return {" ".join(words[n : n + SHINGLE]) for n in range(last + 1)} if words else set()


def text_signature(turns: Sequence[Turn]) -> NDArray[np.uint32]:
    """uint32 [2, 128]: MinHashes of the answers and of all else, each as one text."""
    answers = "\n".join(turn.text for turn in turns if turn.role == "gpt")
    rest = "\n".join(turn.text for turn in turns if turn.role != "gpt")
    return np.stack([_minhash(f"{kind}:", text) for kind, text in (("a", answers), ("q", rest))])


def similarity(
    signatures: NDArray[np.uint32], signature: NDArray[np.uint32]
) -> NDArray[np.float64]:
    """[texts]: the smaller of the similarities of the answers and of the rest.

    A long question would hide that its two answers are "A" and "B", were all of it one text.

    Args:
        signatures: uint32 [texts, 2, 128].
        signature: uint32 [2, 128].
    """
    least: NDArray[np.float64] = (signatures == signature).mean(axis=2).min(axis=1)
    return least


class TextIndex:
    """Signatures so far, found by locality-sensitive hashing: about 6 KB of memory for each.

    It looks for similar unions of a signature's two sets of shingles. These sets are disjoint, so
    where both are similar, so is the union.

    Raises:
        ValueError: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        bands = bands_and_rows(threshold)
        self._tables = _load_datasketch().MinHashLSH(num_perm=_PERMUTATIONS, params=bands)

    def add(self, number: int, signature: NDArray[np.uint32]) -> None:
        self._tables.insert(number, _union(signature))

    def candidates(self, signature: NDArray[np.uint32]) -> list[int]:
        """Numbers of signatures that may be similar, in ascending order."""
        return sorted(self._tables.query(_union(signature)))


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """The most rows a band with which texts of the wanted similarity are found surely enough.

    A text of similarity s is found with probability 1 - (1 - s^rows)^bands (Leskovec et al., Mining
    of Massive Datasets, 3.4.2). More rows let fewer others pass.
    """
    for rows in range(_PERMUTATIONS // 2, 0, -1):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _FOUND:
            return bands, rows
    raise AssertionError(threshold)


@lru_cache(maxsize=1)
def _empty() -> Any:
    """A MinHash of nothing; making its permutations takes longer than using them."""
    return _load_datasketch().MinHash(num_perm=_PERMUTATIONS, scheme="affine32")


def _load_datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise ValueError(
            "near-duplicate texts need datasketch: pip install 'megatron-llava[curation]'"
        ) from None
    return datasketch


def _minhash(kind: str, text: str) -> NDArray[np.uint32]:
    minhash = _empty().copy()
    found = [f"{kind}{shingle}" for shingle in shingles(text)]
    minhash.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in found])
    values: NDArray[np.uint32] = minhash.hashvalues
    return values


def _union(signature: NDArray[np.uint32]) -> Any:
    minhash = _empty().copy()
    minhash.hashvalues = signature.min(axis=0)
    return minhash
