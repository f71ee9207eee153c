from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.sorted_counts import SortedCounts

KEYS = st.lists(st.text(alphabet="ab é\U0001f600z'-", max_size=3), max_size=6)


@given(st.lists(KEYS, max_size=12), st.integers(1, 8))
def test_counts_are_those_of_a_dictionary(tmp_path_factory, lists, keys_in_memory):
    folder = tmp_path_factory.mktemp("counts") / "own"
    counts = SortedCounts(folder, keys_in_memory)
    for keys in lists:
        counts.add(keys)
    counts.add_count("more", 7)
    expected = Counter(key for keys in lists for key in keys) + Counter(more=7)
    for _ in range(2):  # as often as asked
        assert list(counts) == sorted(expected.items())


def test_memory_is_bounded_and_files_are_few(tmp_path):
    counts = SortedCounts(tmp_path / "own", 10)
    held, files = 0, 0
    for number in range(3000):
        counts.add([f"{number * 7919 % 1500:04}"])
        held = max(held, len(counts._counter))
        files = max(files, len(list((tmp_path / "own").iterdir())))
    assert held < 10 and files <= 65
    assert list(counts) == [(f"{number:04}", 2) for number in range(1500)]
    assert len(list((tmp_path / "own").iterdir())) == 1
