import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.hamming_index import HammingIndex, hamming_distance

HASHES = st.integers(0, 2**64 - 1)
FLIPS = st.lists(st.integers(0, 63), max_size=16)


def flipped(value, bits):
    for bit in bits:
        value ^= 1 << bit
    return value


def index_of(distance, hashes):
    index = HammingIndex(distance)
    for value in hashes:
        index.add(value)
    return index


@given(st.integers(0, 63), st.lists(st.tuples(HASHES, FLIPS), max_size=30), HASHES, st.data())
def test_finds_exactly_what_comparing_all_finds(distance, drawn, other, data):
    """Random hashes are some 32 bits apart, so each has a neighbour with a few bits flipped."""
    stored = sorted({h for value, bits in drawn for h in (value, flipped(value, bits))})
    index = index_of(distance, data.draw(st.permutations(stored)))
    for asked in [other, *stored, *(flipped(value, [0, 21, 63]) for value in stored)]:
        expected = [h for h in stored if f"{h ^ asked:b}".count("1") <= distance]
        assert index.near(asked) == expected


@pytest.mark.parametrize("distance", range(64))
@pytest.mark.parametrize("value", [0, 0x9E3779B97F4A7C15])
def test_no_way_to_spread_the_bits_hides_a_neighbour(distance, value):
    """Bits spread evenly, from every first one: they touch all segments but one."""
    index = index_of(distance, [value])
    for first in range(64):
        bits = [(first + 64 * n // distance) % 64 for n in range(distance)]
        assert len(set(bits)) == distance
        assert index.near(flipped(value, bits)) == [value]
        further = next(bit for bit in range(64) if bit not in bits)
        assert index.near(flipped(value, [*bits, further])) == []


@given(HASHES, FLIPS)
def test_the_distance_counts_bits(value, bits):
    odd = [bit for bit in set(bits) if bits.count(bit) % 2]
    assert hamming_distance(value, flipped(value, bits)) == len(odd)
