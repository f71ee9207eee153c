"""Words and pairs against counts in plain dictionaries and NLTK's association measure."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.collocations import BigramAssocMeasures, BigramCollocationFinder
from nltk.probability import FreqDist

from megatron_llava.curation.ngrams import bigrams_above, count_words, phrases, pmi

TEXTS = st.lists(
    st.lists(st.sampled_from([*"abcdefgh", "a-b", "d'e"]), max_size=12).map(" ".join), max_size=5
)


def bigrams(texts, folder, min_pmi, min_count=1, keys_in_memory=1000):
    words = count_words(texts, folder / "words", keys_in_memory)
    found = bigrams_above(texts, words, min_pmi, min_count, folder, keys_in_memory)
    return {bigram.text: -bigram.negative_pmi for bigram in found}


def scored_by_nltk(texts):
    lines = [text.split() for text in texts]
    words = FreqDist(word for line in lines for word in line)
    pairs = FreqDist(pair for line in lines for pair in zip(line, line[1:], strict=False))
    finder = BigramCollocationFinder(words, pairs)
    return {" ".join(pair): s for pair, s in finder.score_ngrams(BigramAssocMeasures.pmi)}, pairs


@pytest.mark.proves("C11")
def test_pmi_by_hand(tmp_path):
    # 8 words: "new york" twice of new 2 and york 3; p(x,y) = 2/8, p(x) = 2/8, p(y) = 3/8.
    texts = ["new york is york", "in new york so"]
    expected = math.log2((2 / 8) / ((2 / 8) * (3 / 8)))
    assert expected == pytest.approx(math.log2(8 / 3))
    found = bigrams(texts, tmp_path, 0.0)
    assert found["new york"] == pytest.approx(expected)
    assert found["york is"] == pytest.approx(math.log2(8 * 1 / (3 * 1)))
    assert pmi(2, 2, 3, 8) == pytest.approx(expected)


@pytest.mark.proves("C11")
@given(TEXTS, st.floats(-2, 5), st.integers(1, 3), st.sampled_from([1, 3, 1000]))
def test_pairs_and_scores_are_those_of_nltk(
    tmp_path_factory, texts, min_pmi, min_count, keys_in_memory
):
    scores, counts = scored_by_nltk(texts)
    total = sum(len(text.split()) for text in texts)
    if min_pmi > math.log2(max(total, 1)):
        return
    found = bigrams(texts, tmp_path_factory.mktemp("counts"), min_pmi, min_count, keys_in_memory)
    assert found == {
        pair: score
        for pair, score in scores.items()
        if score >= min_pmi and counts[tuple(pair.split(" "))] >= min_count
    }


def test_a_threshold_at_the_very_score_keeps_the_pair(tmp_path):
    # Both words once among 10: nothing in the corpus has more, and it is log2 of 10, rounded.
    texts = ["x y", *["a b c d"] * 2]
    found = bigrams(texts, tmp_path, math.log2(10))
    assert list(found) == ["x y"]


def test_a_pmi_that_the_corpus_cannot_reach_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"--min-bigram-pmi 30: .* the 4 words .*, 2\.00: give"):
        bigrams(["a b c d"], tmp_path, 30.0)


def test_pairs_with_a_frequent_word_are_not_even_counted(tmp_path):
    texts = ["the x y", "the z", *["the a"] * 5]
    assert list(bigrams(texts, tmp_path, 3.0)) == ["x y"]
    counted = "".join(path.read_text() for path in (tmp_path / "pairs").iterdir())
    assert counted == "x y\t1\n"


def test_thirty_is_reached_by_rare_words_of_a_corpus_of_wikipedias_size():
    words = 4_000_000_000
    assert pmi(3, 3, 3, words) >= 30 > pmi(4, 4, 4, words)
    assert pmi(1, 1, 1, 2**30) == 30 > pmi(1, 1, 1, 2**30 - 2**20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, the CAT.", [["The", "cat"], ["the", "CAT"]]),
        ("don't X-ray 3D it\u2019s", [["don't", "X-ray", "3D", "it\u2019s"]]),
        ("a\tb  c\nd", [["a", "b", "c"], ["d"]]),
        ("'quoted' -x- snake_case", [["quoted"], ["x"], ["snake"], ["case"]]),
        ("caf\u00e9 \u6c34", [["caf\u00e9", "\u6c34"]]),
        (" ... ", []),
    ],
)
def test_words(text, expected):
    assert list(phrases(text)) == expected


@given(st.lists(st.sampled_from(["a", "b-c", ", ", "\n", " ", "--", "'"]), max_size=12))
def test_every_word_is_counted_once(tmp_path_factory, parts):
    texts = ["".join(parts)] * 2
    words = count_words(texts, tmp_path_factory.mktemp("counts") / "words", 2)
    expected = Counter(word for text in texts for phrase in phrases(text) for word in phrase)
    assert dict(words.counts) == expected and words.total == expected.total()
