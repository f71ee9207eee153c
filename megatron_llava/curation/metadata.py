"""A list of entries like MetaCLIP's (Xu et al. 2023, "Demystifying CLIP Data"), of a user's files.

The order of the kinds is that of CLIP's description (Radford et al. 2021); the code that MetaCLIP
published begins with the synsets, which for the entries only matters where a budget cuts. The list
is a JSON list of strings, as MetaCLIP publishes its own.
"""

from __future__ import annotations

import heapq
import json
import math
import string
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_llava.curation.budget import Candidates, SourceCounts, within_budget
from megatron_llava.curation.ngrams import Bigram, WordCounts, bigrams_above, count_words
from megatron_llava.curation.text_files import Corpus, expanded
from megatron_llava.curation.titles import count_views
from megatron_llava.curation.wordnet import synset_names


@dataclass(frozen=True, kw_only=True)
class MetadataSettings:
    """The flags of tools/build_metadata.py; the defaults are MetaCLIP's numbers.

    Attributes:
        corpus: names or patterns of texts; none for no uni-grams and pairs.
        titles: names or patterns of titles with views; none for no titles.
        wordnet: a folder or a file; None for no synsets.
        keys_in_memory: n-grams or titles that are counted in memory before they go to a file.
    """

    corpus: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    wordnet: Path | None = None
    output: Path
    min_unigram_count: int = 100
    min_bigram_pmi: float = 30.0
    min_bigram_count: int = 1
    min_title_views: int = 70
    budget: int = 500_000
    keys_in_memory: int = 4_000_000
    overwrite: bool = False


@dataclass(frozen=True)
class MetadataSummary:
    """What was written: words of the corpus, and what became of each kind of entry."""

    words: int
    sources: tuple[SourceCounts, ...]

    def __str__(self) -> str:
        heads = ("", "threshold", "found", "unusable", "duplicates", "cut", "kept")
        rows = [tuple(asdict(source).values()) for source in self.sources]
        sums = ("sum", "", *(sum(column) for column in list(zip(*rows, strict=True))[2:]))
        lines = [f"{heads[0]:<10}{heads[1]:<20}" + "".join(f"{head:>12}" for head in heads[2:])]
        lines += [
            f"{row[0]:<10}{row[1]:<20}" + "".join(f"{count:>12,}" for count in row[2:])
            for row in [*rows, sums]
        ]
        return "\n".join(lines)


def build_metadata(settings: MetadataSettings) -> MetadataSummary:
    """Write the entries and, as OUTPUT with `.sources.json`, the counts of each kind.

    Raises:
        ValueError: one line, before anything is written.
    """
    corpus, title_files = _checked(settings)
    synsets = list(synset_names(settings.wordnet)) if settings.wordnet else []
    with TemporaryDirectory(dir=settings.output.parent, prefix=".counting-") as folder:
        root = Path(folder)
        views = count_views(title_files, root / "titles", settings.keys_in_memory)
        words = count_words(corpus, root / "words", settings.keys_in_memory)
        unigrams = sorted(
            (-count, word) for word, count in words.counts if count >= settings.min_unigram_count
        )
        bigrams = _best_bigrams(settings, corpus, words, root)
        titles = Best(
            ((-count, title) for title, count in views if count >= settings.min_title_views),
            # The list and new titles are at most the budget; marks alone are left out.
            settings.budget + len(string.punctuation),
        )
        entries, counts = within_budget(
            Candidates(
                source="uni-grams",
                threshold=f"count >= {settings.min_unigram_count}",
                entries=[word for _, word in unigrams],
                found=len(unigrams),
            ),
            Candidates(
                source="bi-grams",
                threshold=f"PMI >= {settings.min_bigram_pmi:g}",
                entries=[bigram.text for bigram in bigrams.items],
                found=bigrams.found,
            ),
            Candidates(
                source="titles",
                threshold=f"views >= {settings.min_title_views}",
                entries=[title for _, title in titles.items],
                found=titles.found,
            ),
            Candidates(source="synsets", threshold="all", entries=synsets, found=len(synsets)),
            settings.budget,
        )
    summary = MetadataSummary(words.total, tuple(counts))
    _write(settings, entries, summary)
    return summary


def sources_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}.sources.json")


class Best:
    """The smallest of some items in order, and how many items there were."""

    def __init__(self, items: Iterable, count: int) -> None:
        self.found = 0
        self.items = heapq.nsmallest(count, self._tallied(items))

    def _tallied(self, items: Iterable) -> Iterator:
        for item in items:
            self.found += 1
            yield item


def _best_bigrams(
    settings: MetadataSettings, corpus: Corpus, words: WordCounts, root: Path
) -> Best:
    if not corpus.files:
        return Best((), 1)
    found: Iterator[Bigram] = bigrams_above(
        corpus,
        words,
        settings.min_bigram_pmi,
        settings.min_bigram_count,
        root,
        settings.keys_in_memory,
    )
    # A pair is no uni-gram and no other pair: more than the budget cannot be kept.
    return Best(found, settings.budget)


def _checked(settings: MetadataSettings) -> tuple[Corpus, list[Path]]:
    for flag, least in (
        ("min_unigram_count", 1),
        ("min_bigram_count", 1),
        ("min_title_views", 0),
        ("budget", 1),
        ("keys_in_memory", 1),
    ):
        if getattr(settings, flag) < least:
            name = flag.replace("_", "-")
            raise ValueError(f"--{name} {getattr(settings, flag)}: expected {least} or more")
    if not math.isfinite(settings.min_bigram_pmi):
        raise ValueError(f"--min-bigram-pmi {settings.min_bigram_pmi}: expected a number")
    if not (settings.corpus or settings.titles or settings.wordnet):
        raise ValueError("give at least one of --corpus, --titles and --wordnet")
    output = settings.output
    if output.suffix != ".json" or not output.parent.is_dir():
        raise ValueError(f"--output {output}: expected a .json file in a folder that exists")
    for path in (output, sources_path(output)):
        if path.exists() and not settings.overwrite:
            raise ValueError(f"--output {path}: exists; --overwrite replaces it")
    files = expanded("--corpus", settings.corpus)
    return Corpus(files), expanded("--titles", settings.titles)


def _write(settings: MetadataSettings, entries: list[str], summary: MetadataSummary) -> None:
    described = {
        "words": summary.words,
        "budget": settings.budget,
        "sources": [asdict(source) for source in summary.sources],
    }
    for path, content in ((sources_path(settings.output), described), (settings.output, entries)):
        written = path.with_name(path.name + ".partial")
        text = json.dumps(content, ensure_ascii=False, indent=0 if content is entries else 2)
        written.write_text(text + "\n", encoding="utf-8")
        written.replace(path)
