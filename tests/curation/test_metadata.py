"""Lists of entries from small files of every kind, through the function that the tool calls."""

import gzip
import json
import warnings
from pathlib import Path

import nltk.data
import pyarrow as pa
import pyarrow.parquet
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from megatron_llava.curation.metadata import MetadataSettings, build_metadata, sources_path
from megatron_llava.curation.wordnet import synset_names

LICENCE = "  1 A licence, which is no synset.  \n"


def write_wordnet(folder):
    """WordNet's files with a few synsets, as wndb(5WN) describes them."""
    folder.mkdir()
    synsets = {
        ("noun", "n"): [["dog", "domestic_dog"], ["ice_cream"], ["dog"], ["St._Denis"]],
        ("verb", "v"): [["run"]],
        ("adj", "a"): [["afraid(p)"]],
        ("adv", "r"): [["A.D."]],
    }
    for (name, kind), groups in synsets.items():
        data, index = LICENCE, {}
        for words in groups:
            offset = len(data)
            listed = " ".join(f"{word} 0" for word in words)
            frames = " 00" if kind == "v" else ""
            data += f"{offset:08} 03 {kind} {len(words):02x} {listed} 000{frames} | a gloss  \n"
            for word in words:
                lemma = word.removesuffix("(p)").lower()
                index.setdefault(lemma, []).append(f"{offset:08}")
        (folder / f"data.{name}").write_text(data)
        lines = [
            f"{lemma} {kind} {len(offsets)} 0 {len(offsets)} 0 {' '.join(offsets)}  \n"
            for lemma, offsets in sorted(index.items())
        ]
        (folder / f"index.{name}").write_text(LICENCE + "".join(lines))
        (folder / f"{name}.exc").write_text("")
    (folder / "lexnames").write_text("".join(f"{n:02}\tname.{n}\t1\n" for n in range(45)))
    return folder


class OnlyThisWordNet(WordNetCorpusReader):
    def map_wn(self, *_):
        """It would look for another WordNet in NLTK's data."""


def test_synsets_are_those_of_nltk(tmp_path, monkeypatch):
    folder = write_wordnet(tmp_path / "dict")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = OnlyThisWordNet(str(folder), None)
    names = [synset.name().rsplit(".", 2)[0].replace("_", " ") for synset in reader.all_synsets()]
    assert sorted(synset_names(folder)) == sorted(names)
    assert sorted(names) == ["a.d.", "afraid", "dog", "dog", "ice cream", "run", "st. denis"]


@pytest.fixture
def files(tmp_path):
    """A corpus of three formats: `the` 6 times, `hot` and `dog` 4 times, always side by side."""
    (tmp_path / "a.txt").write_text("the hot dog\nthe hot dog, the end\n")
    (tmp_path / "b.jsonl").write_text('{"text": "the hot dog", "id": 1}\n\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "the Paris the"}\n'))
    pa.parquet.write_table(pa.table({"text": ["a hot dog"], "id": [0]}), tmp_path / "d.parquet")
    (tmp_path / "v1.tsv").write_text("Hot_dog\t60\nParis\t69\nhot dog\t500\nRome\t70\n")
    (tmp_path / "v2.tsv.gz").write_bytes(gzip.compress(b"Hot_dog\t11\nOslo\t100\n"))
    return tmp_path


def settings_of(folder, **changes):
    corpus = ("a.txt", "*.jsonl", "c.jsonl.gz", "*.parquet")
    values = {
        "corpus": tuple(str(folder / name) for name in corpus),
        "titles": (str(folder / "*.tsv"), str(folder / "v2.tsv.gz")),
        "output": folder / "entries.json",
        "min_unigram_count": 4,
        "min_bigram_pmi": 1.5,
        "min_bigram_count": 2,
    }
    return MetadataSettings(**{**values, **changes})


@pytest.mark.proves("C11")
def test_thresholds_order_and_counts(files):
    wordnet = write_wordnet(files / "dict")
    summary = build_metadata(settings_of(files, wordnet=wordnet))
    assert summary.words == 3 + 5 + 3 + 3 + 3
    # PMI of "hot dog": log2(4 * 17 / (4 * 4)) = 2.09; of "the hot": log2(3 * 17 / (6 * 4)) = 1.09.
    entries = json.loads((files / "entries.json").read_text())
    assert entries[:4] == ["the", "dog", "hot", "hot dog"]
    assert entries[4:7] == ["Oslo", "Hot dog", "Rome"]
    assert entries[7:] == ["ice cream", "st. denis", "run", "afraid", "a.d."]
    described = json.loads(sources_path(files / "entries.json").read_text())
    assert described["words"] == 17 and described["budget"] == 500_000
    rows = {row["source"]: row for row in described["sources"]}
    assert {name: row["kept"] for name, row in rows.items()} == {
        "uni-grams": 3,
        "bi-grams": 1,
        "titles": 3,
        "synsets": 5,
    }
    assert (rows["titles"]["found"], rows["titles"]["duplicates"]) == (4, 1)
    assert (rows["synsets"]["found"], rows["synsets"]["duplicates"]) == (7, 2)
    assert f"{'sum':<30}{15:>12}{0:>12}{3:>12}{0:>12}{12:>12}" in str(summary)


@pytest.mark.proves("C11")
def test_a_budget_cuts_the_least_viewed_titles(files):
    summary = build_metadata(settings_of(files, budget=5))
    assert json.loads((files / "entries.json").read_text())[3:] == ["hot dog", "Oslo"]
    titles = summary.sources[2]
    assert (titles.found, titles.duplicates, titles.cut, titles.kept) == (4, 1, 2, 1)


def test_memory_and_order_of_files_change_nothing(files):
    made = []
    for number, keys_in_memory in enumerate((1, 2, 1000)):
        settings = settings_of(
            files, output=files / f"{number}.json", keys_in_memory=keys_in_memory, min_bigram_pmi=-9
        )
        if number == 1:
            settings = MetadataSettings(**{**vars(settings), "corpus": settings.corpus[::-1]})
        build_metadata(settings)
        made.append(settings.output.read_bytes())
    assert made[0] == made[1] == made[2]
    assert not list(files.glob(".counting-*")) and not list(files.glob("*.partial"))


def test_a_text_file_of_lemmas(files):
    (files / "lemmas.txt").write_text("Eiffel_Tower\ncat\n\n")
    build_metadata(MetadataSettings(wordnet=files / "lemmas.txt", output=files / "e.json"))
    assert json.loads((files / "e.json").read_text()) == ["Eiffel Tower", "cat"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": (), "titles": ()}, "at least one of --corpus, --titles and --wordnet"),
        ({"corpus": ("x.txt",)}, "--corpus x.txt: no such file"),
        ({"corpus": ("a.txt", "*.txt")}, "--corpus: a.txt is named 2 times"),
        ({"corpus": ("v1.tsv",)}, "--corpus v1.tsv: expected .txt, .jsonl"),
        ({"corpus": ("bad/a.jsonl",)}, "bad/a.jsonl:2: expected an object with a string 'text'"),
        ({"corpus": ("bad/b.jsonl",)}, "bad/b.jsonl:1: not valid JSON"),
        ({"corpus": ("bad/a.txt",)}, "bad/a.txt:1: not valid UTF-8 at byte 1"),
        ({"corpus": ("bad/a.txt.gz",)}, "bad/a.txt.gz: damaged"),
        ({"corpus": ("bad/b.txt.gz",)}, "bad/b.txt.gz: damaged"),
        ({"corpus": ("bad/c.jsonl",)}, "bad/c.jsonl:1: not valid JSON: nested too deeply"),
        ({"corpus": ("bad/d.jsonl",)}, "bad/d.jsonl:1: not valid JSON: Exceeds the limit"),
        ({"titles": ("bad/t.tsv",)}, "bad/t.tsv:1: expected a title, a tab and a number"),
        ({"corpus": ("bad/a.parquet",)}, "bad/a.parquet: has no column 'text'"),
        ({"corpus": ("bad/b.parquet",)}, "bad/b.parquet: "),
        ({"titles": ("a.txt",)}, "a.txt:1: expected a title, a tab and a number"),
        ({"wordnet": Path("bad")}, "it lacks data.noun, data.verb, data.adj, data.adv"),
        ({"min_bigram_pmi": 30.0}, "--min-bigram-pmi 30: no pair of words"),
        ({"min_bigram_pmi": float("nan")}, "--min-bigram-pmi nan"),
        ({"budget": 0}, "--budget 0: expected 1 or more"),
        ({"budget": 2}, "--budget 2: uni-grams and synsets alone are 3 entries"),
        ({"output": Path("entries.txt")}, "--output entries.txt: expected a .json file"),
        ({"output": Path("bad/there.json")}, "bad/there.json: exists; --overwrite replaces it"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(files, monkeypatch, changes, message):
    monkeypatch.chdir(files)
    bad = files / "bad"
    bad.mkdir()
    (bad / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    (bad / "b.jsonl").write_text("{\n")
    (bad / "a.txt").write_bytes(b"a\xff\n")
    (bad / "a.txt.gz").write_bytes(gzip.compress(b"a b c d e f g\n" * 99)[:-9])
    damaged = bytearray(gzip.compress(bytes(range(256)) * 99))
    damaged[20:40] = b"\xff" * 20
    (bad / "b.txt.gz").write_bytes(damaged)
    (bad / "c.jsonl").write_text("[" * 10**5 + "\n")
    (bad / "d.jsonl").write_text(f'{{"text": {"9" * 5000}}}\n')
    (bad / "t.tsv").write_text(f"cat\t{'9' * 5000}\n")
    pa.parquet.write_table(pa.table({"id": [0]}), bad / "a.parquet")
    (bad / "b.parquet").write_bytes(b"nothing")
    (bad / "there.json").write_text("[]")
    before = sorted(files.rglob("*"))
    with pytest.raises(ValueError) as error:
        build_metadata(settings_of(files, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(files.rglob("*")) == before
