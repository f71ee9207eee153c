"""Words and pairs of words of a corpus, counted exactly in bounded memory.

A word is a run of letters and digits, runs joined by an apostrophe or a hyphen being one word; its
case counts, since it does in matching. A pair is two words with white space and nothing else
between them, on one line.

    PMI(x, y) = log2(p(x, y) / (p(x) p(y))) = log2(n_xy N / (n_x n_y))

N is the number of words, of which both kinds of probability are shares. It is the formula and the
logarithm of NLTK's BigramAssocMeasures.pmi, with which MetaCLIP's list was made. Since n_xy is at
most n_x and n_y, PMI <= log2(N / max(n_x, n_y)): a PMI of 30 takes N >= 2^30 = 1.07e9 words. The
English Wikipedia has that many, so there only words that occur N / 2^30 times, a few times at most,
are in such pairs. Leaving out rare pairs to save memory would thus leave out what is looked for.
What can be left out without any loss are pairs with a frequent word, one that occurs more than
N / 2^threshold times; the rest is counted in files.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from megatron_llava.curation.sorted_counts import SortedCounts

_WORD = r"[^\W_]+(?:['\u2019-][^\W_]+)*"
_PHRASE = re.compile(rf"{_WORD}(?:[^\S\r\n]+{_WORD})*")


def phrases(text: str) -> Iterator[list[str]]:
    """Words that follow each other with only white space between them."""
    return (phrase.split() for phrase in _PHRASE.findall(text))


def pmi(pair: int, first: int, second: int, words: int) -> float:
    """log2(n_xy N / (n_x n_y)) of four counts."""
    return math.log2(pair * words) - math.log2(first * second)


@dataclass(frozen=True)
class WordCounts:
    """Every word of a corpus with its count, ascending, and the number of words in all."""

    counts: SortedCounts
    total: int


def count_words(texts: Iterable[str], folder: Path, keys_in_memory: int) -> WordCounts:
    counts, total = SortedCounts(folder, keys_in_memory), 0
    for text in texts:
        words = [word for phrase in phrases(text) for word in phrase]
        counts.add(words)
        total += len(words)
    return WordCounts(counts, total)


@dataclass(frozen=True, order=True)
class Bigram:
    """A pair of words; ordered by falling PMI, then by the words."""

    negative_pmi: float
    text: str


def bigrams_above(
    texts: Iterable[str],
    words: WordCounts,
    min_pmi: float,
    min_count: int,
    folder: Path,
    keys_in_memory: int,
) -> Iterator[Bigram]:
    """Every pair of a corpus with at least this PMI and count, in no useful order.

    Args:
        texts: those that the words were counted in.
        folder: one that exists; the counts go below it.

    Raises:
        ValueError: the corpus is too small for any pair to reach the PMI.
    """
    highest = math.log2(max(words.total, 1))
    if min_pmi > highest:
        raise ValueError(
            f"--min-bigram-pmi {min_pmi:g}: no pair of words can have more than log2 of the "
            f"{words.total:,} words of --corpus, {highest:.2f}: give a lower one or a larger corpus"
        )
    frequent = _frequent(words, min_pmi, keys_in_memory)
    pairs = SortedCounts(folder / "pairs", keys_in_memory)
    for text in texts:
        pairs.add(
            f"{first} {second}"
            for phrase in phrases(text)
            for first, second in pairwise(phrase)
            if first not in frequent and second not in frequent
        )
    # A space sorts before whatever a word holds, so pairs are in the order of their first words;
    # sorted again with the second word in front they are in the order of those.
    by_second = SortedCounts(folder / "by-second", keys_in_memory)
    enough = ((pair, count) for pair, count in pairs if count >= min_count)
    for first, second, count, occurrences in _joined(enough, words.counts):
        by_second.add_count(f"{second} {first} {occurrences}", count)
    for second, rest, count, occurrences in _joined(by_second, words.counts):
        first, of_first = rest.split(" ")
        score = pmi(count, int(of_first), occurrences, words.total)
        if score >= min_pmi:
            yield Bigram(-score, f"{first} {second}")


def _frequent(words: WordCounts, min_pmi: float, keys_in_memory: int) -> frozenset[str]:
    """Words that cannot be in a pair with that PMI, the most frequent where there are many."""
    # A little more than N / 2^min_pmi: a PMI that is rounded up to the threshold stays.
    most = words.total * 2.0 ** (1e-6 - min_pmi)
    above = ((count, word) for word, count in words.counts if count > most)
    return frozenset(word for _, word in heapq.nlargest(keys_in_memory, above))


def _joined(
    keys: Iterable[tuple[str, int]], words: Iterable[tuple[str, int]]
) -> Iterator[tuple[str, str, int, int]]:
    """(first word of the key, the rest, count of the key, count of the word); both ascending."""
    ascending = iter(words)
    word, occurrences = "", 0
    for key, count in keys:
        first, _, rest = key.partition(" ")
        while word != first:
            word, occurrences = next(ascending)
        yield first, rest, count, occurrences
