"""The kinds of samples that a log counts."""

import pytest

from megatron_llava.data.sample_kinds import KIND_COLUMNS, count_kinds, kind_of

IMAGE, VIDEO = (640, 480), (32, 0)


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ([], "text"),
        ([IMAGE], "single-image"),
        ([IMAGE] * 2, "multi-image"),
        ([IMAGE] * 8, "multi-image"),
        ([VIDEO], "video"),
        ([VIDEO] * 2, "video"),
        ([IMAGE, VIDEO], "video"),
    ],
)
def test_the_kind_of_a_sample(sizes, kind):
    assert list(KIND_COLUMNS)[kind_of(sizes)] == kind


def test_kinds_are_counted():
    assert count_kinds([[], [IMAGE], [IMAGE, IMAGE], [VIDEO], [IMAGE], []]) == (2, 2, 1, 1)
    assert count_kinds([]) == (0, 0, 0, 0)
