import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.near_duplicates import Fingerprint, NearDuplicates

DISTANCE, SIMILARITY = 4, 0.75
TEXTS = [np.full((2, 128), number, dtype=np.uint32) for number in range(3)]
# One answer of three that is like the first in 3 of 4 values, and another in fewer.
TEXTS.append(np.where(np.arange(128) < 96, 0, 9).astype(np.uint32) * np.ones((2, 1), np.uint32))
TEXTS.append(np.where(np.arange(128) < 95, 0, 9).astype(np.uint32) * np.ones((2, 1), np.uint32))
# Hashes in which 3 bits differ from the next: the first and the third are not near.
HASHES = st.sampled_from([0b0, 0b111, 0b111111, 0b111 << 61, 2**64 - 1])
IMAGES = st.lists(HASHES, min_size=1, max_size=3).map(tuple)


def is_near(first, second):
    if len(first.images) != len(second.images):
        return False
    bits = [bin(a ^ b).count("1") for a, b in zip(first.images, second.images, strict=True)]
    texts = True
    if first.text is not None:
        texts = ((first.text == second.text).mean(axis=1) >= SIMILARITY).all()
    return max(bits, default=0) <= DISTANCE and texts


def records(by):
    text = st.sampled_from(TEXTS)
    if by == "image":
        with_images = st.builds(Fingerprint, IMAGES, st.none())
    else:
        with_images = st.builds(Fingerprint, IMAGES, text)
    text_only = st.builds(Fingerprint, st.just(()), text)
    return text_only if by == "text" else with_images | text_only


@pytest.mark.parametrize("by", ["both", "image", "text"])
@given(st.data())
def test_equals_comparing_with_every_kept_record(by, data):
    kept = {}
    seen = NearDuplicates(DISTANCE, SIMILARITY)
    for number, record in enumerate(data.draw(st.lists(records(by), max_size=25))):
        expected = [n for n, earlier in kept.items() if is_near(earlier, record)]
        found = seen.match(record)
        assert (found and found.number) == (expected[0] if expected else None)
        if found is None:
            kept[number] = record
            seen.add(number, record)
        else:
            earlier = kept[found.number]
            pairs = zip(earlier.images, record.images, strict=True)
            assert found.image_distances == tuple(bin(a ^ b).count("1") for a, b in pairs)
            if record.text is None:
                assert found.text_similarity is None
            else:
                assert found.text_similarity == (earlier.text == record.text)[0].mean()
