"""Matching against a search for each entry in a text that is spaced mark by mark."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.matching import EntryMatcher, can_match, read_entries

PIECES = [
    "a",
    "A",
    "b",
    "ab",
    " ",
    "  ",
    ",",
    ".",
    "!",
    "`",
    "\n",
    "\t",
    "-",
    "'",
    "\u00e9",
    "\U0001f600",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ENTRY = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)


def spaced_slowly(text):
    padded = f" {text} "
    for mark in (",", ".", ";", ":", "?", "!", "`"):
        padded = padded.replace(mark, f" {mark} ")
    for white in ("\t", "\n", "\r"):
        padded = padded.replace(white, " ")
    return padded


@given(st.lists(ENTRY, min_size=1, max_size=8, unique=True), st.lists(TEXT, max_size=4))
def test_matches_are_those_of_a_search_for_each_entry(entries, captions):
    matcher = EntryMatcher(entries)
    for caption in captions:
        text = spaced_slowly(caption)
        expected = [number for number, entry in enumerate(entries) if f" {entry} " in text]
        assert matcher(caption).tolist() == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("cat", ["cat"]),
        ("a cat,a dog.", ["cat", "dog", "a"]),
        ("cats and hot\tdog", ["dog", "hot dog"]),
        ("hot  dog", ["dog"]),  # two spaces are not one
        ('the "cat" (dog)', []),  # quotes and brackets belong to the word
        ("Cat", []),
        ("cat cat cat", ["cat"]),
        ("", []),
    ],
)
def test_rule(caption, expected):
    entries = ["cat", "dog", "hot dog", "a", "St. Louis"]
    assert [entries[number] for number in EntryMatcher(entries)(caption)] == expected


def test_can_match_is_what_all_short_captions_say():
    letters = "a ,."
    texts = ["".join(t) for n in range(1, 5) for t in itertools.product(letters, repeat=n)]
    held = " | ".join(map(spaced_slowly, texts))
    for entry in texts:
        if len(entry) < 5:
            assert can_match(entry) == (f" {entry} " in held), entry
    assert not can_match("St. Louis") and not can_match("a\tb") and can_match("hot dog")


def test_entries_of_files(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["a b", "\u00e9"]))
    (tmp_path / "e.txt").write_text("a b\n\u00e9\n", encoding="utf-8")
    assert (
        read_entries(tmp_path / "e.json") == read_entries(tmp_path / "e.txt") == ["a b", "\u00e9"]
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.json", '["a", "b", "a"]', "'a' is there twice, as entries 0 and 2"),
        ("e.json", '["a", " "]', "entry 1 is ' ', no text"),
        ("e.json", "[3]", "entry 0 is 3, no text"),
        ("e.json", "[]", "expected a list of at least one entry"),
        ("e.json", '{"a": 1}', "expected a list of at least one entry"),
        ("e.json", "[", "line 1"),
        ("e.txt", "", "expected a list of at least one entry"),
        ("none.txt", None, "No such file"),
    ],
)
def test_errors_of_entries(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_entries(tmp_path / name)
    assert message in str(error.value) and f"--entries {tmp_path / name}: " in str(error.value)
    assert "\n" not in str(error.value)
