import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.text_similarity import (
    TextIndex,
    bands_and_rows,
    shingles,
    similarity,
    text_signature,
)
from megatron_llava.text.templates import Turn

WORDS = [f"word{number}" for number in range(500)]


def turns(question, answer):
    return [Turn("human", question), Turn("gpt", answer)]


def estimate(first, second):
    return float(similarity(text_signature(first)[None], text_signature(second))[0])


def jaccard(first, second):
    return len(first & second) / len(first | second)


def edited(words, changes, rng):
    words = list(words)
    for place in rng.choice(len(words), changes, replace=False):
        words[place] = f"other{place}"
    return words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat sat  down.", {"a cat sat", "cat sat down", "sat down ."}),
        ("<image>\nYes", {"yes"}),
        ("x+y", {"x + y"}),
        ("猫が いる", {"猫 が い", "が い る"}),
        ("l'été à Zürich", {"l ' été", "' été à", "été à zürich"}),
        (" <image>\n", set()),
    ],
)
def test_shingles(text, expected):
    assert shingles(text) == expected


@given(st.integers(0, 2**32), st.integers(20, 150), st.integers(0, 12))
def test_decisions_are_those_of_exact_similarity(seed, length, changes):
    """Away from the threshold by four standard deviations of the estimate."""
    rng = np.random.default_rng(seed)
    first = list(rng.choice(WORDS, length))
    second = edited(first, min(changes, length), rng)
    exact = jaccard(shingles(" ".join(first)), shingles(" ".join(second)))
    found = estimate(turns("Why?", " ".join(first)), turns("why ?", " ".join(second)))
    if abs(exact - 0.8) > 4 * (0.8 * 0.2 / 128) ** 0.5:
        assert (found >= 0.8) == (exact >= 0.8)
    if exact == 1:
        assert found == 1


def test_questions_and_answers_have_to_be_similar():
    long = " ".join(WORDS[:100])
    assert estimate(turns(long, "A"), turns(long, "B")) == 0
    assert estimate(turns("A", long), turns("B", long)) == 0
    assert estimate(turns(long, "A"), turns(long.upper(), " a\n")) == 1
    assert estimate(turns(long, "A"), [Turn("system", long), *turns("", "A")]) == 1
    assert estimate(turns("", ""), turns("<image>", "")) == 1


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95, 1.0])
def test_bands_find_similar_texts(threshold):
    bands, rows = bands_and_rows(threshold)
    assert bands * rows <= 128 and bands >= 2
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    # One row more in a band would be too many, where a band can have one more.
    assert rows == 64 or 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


def test_the_index_finds_similar_texts_among_others():
    """Texts with a word changed (similarity above 0.9) are found among 300; others rarely are."""
    rng = np.random.default_rng(0)
    texts = [list(rng.choice(WORDS, 90)) for _ in range(300)]
    index = TextIndex(0.8)
    for number, words in enumerate(texts):
        question, answer = " ".join(words[:45]), " ".join(words[45:])
        index.add(number, text_signature(turns(question, answer)))
    others = 0
    for number, words in enumerate(texts):
        near = edited(words, 1, rng)
        question, answer = " ".join(near[:45]), " ".join(near[45:])
        found = index.candidates(text_signature(turns(question, answer)))
        assert number in found and found == sorted(found)
        others += len(found) - 1
    assert others < 300
