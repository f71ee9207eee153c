import pytest

from megatron_llava.inference.scorers import accuracy_by_kind, exact_match


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("red", "red", True),
        (" Red\n", "red", True),
        ("red", " RED ", True),
        ("red.", "red", False),
        ("red square", "red", False),
        ("red  square", "red square", False),
        ("", "red", False),
        ("", "", True),
    ],
)
def test_exact_match(answer, truth, right):
    assert exact_match(answer, truth) is right


def test_accuracy_by_kind():
    rows = [("colour", True), ("count", False), ("colour", False), ("colour", True)]
    found = accuracy_by_kind(rows)
    assert found == {"colour": pytest.approx(2 / 3), "count": 0.0, "overall": 0.5}


def test_no_question_has_no_accuracy():
    assert accuracy_by_kind([]) == {}
