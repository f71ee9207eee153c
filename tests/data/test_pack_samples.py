"""The compiled packer makes the packs that the Python one defines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.data.pack_in_python import pack_in_python
from megatron_llava.data.pack_samples import CompiledPacker, pack_samples
from megatron_llava.data.splitmix import hashes, one_hash, permutation
from megatron_llava.platform.extension import library


@pytest.fixture(scope="module")
def compiled():
    if library() is None:
        pytest.skip("installed without a compiler")
    return CompiledPacker(library())


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    spare=st.integers(0, 200),
    with_views=st.booleans(),
    max_views=st.integers(5, 12),
    seed=st.integers(0, 2**64 - 1),
    window=st.integers(0, 90),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_both_packers_agree(
    compiled, lengths, spare, with_views, max_views, seed, window, shuffle, data
):
    array, capacity = np.array(lengths, np.int64), max(lengths) + spare
    views = None
    if with_views:
        drawn = st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths))
        views = np.array(data.draw(drawn), np.int64)
    how = (capacity, max_views, seed, window, shuffle)
    found, expected = compiled(array, views, *how), pack_in_python(array, views, *how)
    np.testing.assert_array_equal(found.sample_ids, expected.sample_ids)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert sorted(found.sample_ids.tolist()) == list(range(len(lengths)))
    for begin, end in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        ids = found.sample_ids[begin:end]
        assert 0 < array[ids].sum() <= capacity
        assert views is None or views[ids].sum() <= max_views


def images_of_few_sizes(count: int) -> np.ndarray:
    """Three or four of them make a pack of 8,192, and no two or three of one kind fill it."""
    generator = np.random.default_rng(3)
    words = np.exp(generator.normal(4.8, 0.8, count)).astype(np.int64)
    visual = generator.choice(np.array([2340, 2340, 1176, 2634, 2928]), count)
    return words + visual * (generator.random(count) < 0.97) + 1


@pytest.mark.parametrize("max_views", [0, 14])
def test_both_packers_agree_where_packs_are_filled_evenly(compiled, max_views):
    lengths = images_of_few_sizes(3000)
    views = lengths // 576 if max_views else None
    how = (8192, max_views, 5, 0, True)
    found, expected = compiled(lengths, views, *how), pack_in_python(lengths, views, *how)
    np.testing.assert_array_equal(found.sample_ids, expected.sample_ids)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


def test_packs_of_images_of_few_sizes_are_full():
    lengths = images_of_few_sizes(100_000)
    packs = pack_samples(lengths, 8192, seed=0)
    # With the longest sample alone it was 97.7 %.
    assert lengths.sum() / (8192 * (len(packs.offsets) - 1)) > 0.994


def test_packs_whose_views_are_scarce_are_full():
    lengths = images_of_few_sizes(20_000)
    views = lengths // 576
    max_views = int(8192 * views.sum() / lengths.sum())
    packs = pack_samples(lengths, 8192, seed=0, views=views, max_views=max_views)
    # As many as the rows of a pack have on the average. In order it was 80 %.
    assert lengths.sum() / (8192 * (len(packs.offsets) - 1)) > 0.91


def test_views_that_are_scarce_are_probed_the_same(compiled):
    lengths = np.arange(1, 301, dtype=np.int64)
    views = np.where(np.arange(300) % 7 == 0, 0, 9).astype(np.int64)
    how = (400, 9, 5, 0, True)
    found, expected = compiled(lengths, views, *how), pack_in_python(lengths, views, *how)
    np.testing.assert_array_equal(found.sample_ids, expected.sample_ids)


def test_hashes_are_splitmix64():
    # The published test vector of seed 1234567.
    assert hashes(1234567, 3).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    stream = hashes(99, 50)
    assert [one_hash(99, place) for place in (0, 7, 49)] == stream[[0, 7, 49]].tolist()
    assert 0 <= one_hash(2**64 - 1, 2**64 - 2) < 2**64


def test_a_permutation_is_one():
    for count in (1, 2, 1000):
        assert sorted(permutation(5, count).tolist()) == list(range(count))
    places = permutation(5, 10_000)
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05


def test_a_pack_is_a_random_draw_but_for_its_last_samples():
    lengths = np.repeat(np.array([10, 20, 30], np.int64), 400)
    packs = pack_samples(lengths, 600, seed=0)
    of_packs = np.split(lengths[packs.sample_ids], packs.offsets[1:-1])
    assert all(len(set(of_pack)) == 3 for of_pack in of_packs[:-2])
