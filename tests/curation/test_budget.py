import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.budget import Candidates, within_budget


def kinds(unigrams, bigrams, titles, synsets):
    lists = {"uni-grams": unigrams, "bi-grams": bigrams, "titles": titles, "synsets": synsets}
    return [
        Candidates(source=name, threshold="", entries=entries, found=len(entries))
        for name, entries in lists.items()
    ]


@pytest.mark.proves("C11")
def test_order_and_duplicates():
    entries, counts = within_budget(
        *kinds(
            ["the", "cat"], ["hot dog"], ["hot dog", "Paris", "cat", "!"], ["cat", "dog", "dog"]
        ),
        100,
    )
    assert entries == ["the", "cat", "hot dog", "Paris", "dog"]
    assert [(c.found, c.unusable, c.duplicates, c.cut, c.kept) for c in counts] == [
        (2, 0, 0, 0, 2),
        (1, 0, 0, 0, 1),
        (4, 1, 2, 0, 1),
        (3, 0, 2, 0, 1),
    ]


def test_titles_are_cut_first_then_pairs_and_neither_words_nor_synsets():
    lists = (["a", "b"], ["a b", "b a", "c c"], ["T1", "T2", "T3"], ["b", "s1", "b a"])
    expected = {
        10: ["a", "b", "a b", "b a", "c c", "T1", "T2", "T3", "s1"],
        8: ["a", "b", "a b", "b a", "c c", "T1", "T2", "s1"],
        6: ["a", "b", "a b", "b a", "c c", "s1"],
        5: ["a", "b", "a b", "b a", "s1"],
        # A pair behind the cut that is also a synset stays, as a synset.
        4: ["a", "b", "s1", "b a"],
    }
    for budget, entries in expected.items():
        assert within_budget(*kinds(*lists), budget)[0] == entries
    with pytest.raises(ValueError, match=r"--budget 3: .* alone are 4 entries"):
        within_budget(*kinds(*lists), 3)


@pytest.mark.proves("C11")
def test_the_published_numbers_make_half_a_million():
    offered = {"w": 251_465, "p": 100_646, "t": 70_000, "s": 86_654}
    lists = [[f"{kind}{n}" for n in range(count)] for kind, count in offered.items()]
    entries, counts = within_budget(*kinds(*lists), 500_000)
    assert len(entries) == 500_000
    assert [count.kept for count in counts] == [251_465, 100_646, 61_235, 86_654]


NAMES = st.lists(st.sampled_from([*"abcdefghijklm!"]), max_size=8)
UNIQUE = NAMES.map(lambda names: list(dict.fromkeys(names)))


@given(UNIQUE, UNIQUE, UNIQUE, NAMES, st.integers(0, 20))
def test_the_budget_is_used_up_and_counts_add_up(unigrams, bigrams, titles, synsets, budget):
    offered = [
        name for name in dict.fromkeys([*unigrams, *bigrams, *titles, *synsets]) if name != "!"
    ]
    certain = {*unigrams, *synsets} - {"!"}
    try:
        entries, counts = within_budget(*kinds(unigrams, bigrams, titles, synsets), budget)
    except ValueError:
        assert len(certain) > budget
        return
    assert len(set(entries)) == len(entries) == min(budget, len(offered))
    assert certain <= set(entries) <= set(offered)
    assert sum(count.kept for count in counts) == len(entries)
    for count in counts:
        assert count.found == count.unusable + count.duplicates + count.cut + count.kept
        assert min(count.unusable, count.duplicates, count.cut, count.kept) >= 0
