"""Scores of answers, on numbers worked out by hand."""

import pytest

from megatron_llava.inference.answer_match import exact_match
from megatron_llava.inference.answered import Answered
from megatron_llava.inference.scorers import SCORERS, scores_by_kind
from megatron_llava.inference.yes_no import check_yes_or_no


def answered(answer, *truths, kind="question", image=None):
    return Answered(kind=kind, image=image, answer=answer, truths=truths)


def one(scorer, answer, *truths):
    """The only measure of the only question."""
    (value,) = SCORERS[scorer]([answered(answer, *truths)]).values()
    return value


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
    assert one("exact_match", answer, "nothing like it", truth) == right


def test_scores_are_told_apart_by_kind():
    rows = [
        answered(answer, "yes", kind=kind)
        for kind, answer in [("colour", "yes"), ("count", ""), ("colour", "no"), ("colour", "Yes")]
    ]
    assert scores_by_kind(rows, SCORERS["exact_match"]) == {
        "colour": {"exact match": pytest.approx(2 / 3)},
        "count": {"exact match": 0.0},
        "overall": {"exact match": 0.5},
    }
    assert scores_by_kind([], SCORERS["exact_match"]) == {}


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("agreeing", "score"),
    # Each of ten is left out: of 3 who agree, 3 see two others and 7 see three.
    [(0, 0.0), (1, 0.9 / 3), (2, (2 * 1 + 8 * 2) / 30), (3, (3 * 2 + 7 * 3) / 30), (4, 1.0)],
)
def test_vqa_accuracy_of_ten_people(agreeing, score):
    truths = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert one("vqa", "cat", *truths) == pytest.approx(score)


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("The Cat.", "cat", 1.0),
        ("two", "2", 1.0),
        ("none", "0", 1.0),
        ("1,000", "1000", 1.0),
        ("3.5", "35", 0.0),
        ("it's", "its", 0.0),
        ("dogs", "dog's", 0.0),
        ("isnt", "isn't", 1.0),
        ("red/blue", "red blue", 1.0),
        ("1,000 red/blue", "1000 redblue", 1.0),
        ("a-b - c", "ab  c", 1.0),
        ("yes, it is", "yes it is", 1.0),
        ("a an the", "", 1.0),
        ("cats", "cat", 0.0),
    ],
)
def test_vqa_accuracy_of_one_truth(answer, truth, score):
    assert one("vqa", answer, truth) == score


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("answer", "truths", "score"),
    [
        ("Paris", ["paris"], 1.0),
        ("pariss", ["paris", "london"], 5 / 6),
        ("kitten", ["sitting"], 4 / 7),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("two  words", ["two words"], 1.0),
        ("", ["a"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_similarity_of_edits(answer, truths, score):
    assert one("anls", answer, *truths) == pytest.approx(score)


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("105", "100", 1.0),
        ("95", "100", 1.0),
        ("105.1", "100", 0.0),
        ("-98", "-100", 1.0),
        ("98", "-100", 0.0),
        ("42%", "0.42", 1.0),
        ("42 %", "42%", 1.0),
        ("0.0", "0", 0.0),
        ("0", "0", 1.0),
        ("Blue", "blue", 1.0),
        ("blues", "blue", 0.0),
        ("12", "twelve", 0.0),
    ],
)
def test_numbers_within_five_per_cent(answer, truth, score):
    assert one("relaxed", answer, truth) == score


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("B", "B", 1.0),
        ("(B) two cats", "B", 1.0),
        ("B. two cats", "B. two cats", 1.0),
        ("B: two", "(B)", 1.0),
        ("b", "B", 1.0),
        ("The answer is (B).", "B", 1.0),
        ("A cat", "A", 0.0),
        ("but", "B", 0.0),
        ("A", "B", 0.0),
        ("Because", "B", 0.0),
        ("two cats", "B", 0.0),
        ("", "B", 0.0),
    ],
)
def test_letters_of_options(answer, truth, score):
    assert one("choice", answer, truth) == score


@pytest.mark.proves("E4")
def test_pope():
    # Three yes of which two are right, four truths of yes: precision 2/3, recall 2/4.
    found = ["Yes", "yes, there is", "A dog", "No.", "There is not one", "no", "No dog. Yes."]
    truths = ["yes", "yes", "no", "yes", "yes", "no", "no"]
    rows = [answered(*pair) for pair in zip(found, truths, strict=True)]
    assert SCORERS["pope"](rows) == pytest.approx(
        {"accuracy": 4 / 7, "precision": 2 / 3, "recall": 0.5, "F1": 4 / 7, "yes": 3 / 7}
    )
    nothing = SCORERS["pope"]([answered("no", "no")])
    assert nothing == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "F1": 0.0, "yes": 0.0}


@pytest.mark.proves("E4")
@pytest.mark.parametrize("truth", ["yes", "No.", " no, there is none"])
def test_truths_of_yes_and_no(truth):
    check_yes_or_no(truth, "data.json: record 3")


@pytest.mark.parametrize("truth", ["a red cat", "nothing", "", "it is not"])
def test_other_truths_are_refused(truth):
    with pytest.raises(ValueError, match="data.json: record 3: .* neither yes nor no"):
        check_yes_or_no(truth, "data.json: record 3")


def test_mme():
    rows = [
        answered("Yes", "Yes", kind="count", image="1.png"),
        answered("no", "No", kind="count", image="1.png"),
        answered("Yes", "Yes", kind="count", image="2.png"),
        answered("yes, it is", "No", kind="count", image="2.png"),
        answered("Nothing", "No", kind="code", image="1.png"),
        answered("No.", "No", kind="code", image="1.png"),
    ]
    shares = {"accuracy": pytest.approx(4 / 6), "accuracy+": pytest.approx(1 / 3)}
    assert scores_by_kind(rows, SCORERS["mme"]) == {
        "count": {"accuracy": 0.75, "accuracy+": 0.5, "score": 125.0},
        "code": {"accuracy": 0.5, "accuracy+": 0.0, "score": 50.0},
        "overall": shares | {"score": 175.0},
    }
