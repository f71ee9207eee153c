import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.text.split_turns import Part, split_turns
from megatron_llava.text.templates import Turn


def dialogue(*texts):
    return tuple(Turn(("human", "gpt")[n % 2], text) for n, text in enumerate(texts))


def test_short_conversations_stay_whole():
    turns = dialogue("<image>\na", "b", "c <image>", "d")
    for most in (2, 3):
        assert split_turns(turns, most) == [Part(turns, (0, 1), 1, 4)]


def test_parts_keep_the_images_that_they_speak_of():
    system = Turn("system", "be kind")
    turns = (system, *dialogue("<image><image>\na", "b", "c <image>", "d", "e", "f"))
    first, second, third = split_turns(turns, 1)
    assert first == Part((system, *dialogue("<image><image>\na", "b")), (0, 1), 1, 2)
    assert second.turns == (system, *dialogue("<image>\n<image>\nc <image>", "d"))
    assert second.images == (0, 1, 2) and (second.first, second.last) == (3, 4)
    assert third.turns == (system, *dialogue("<image>\n<image>\ne", "f"))
    assert third.images == (0, 1) and (third.first, third.last) == (5, 6)


def test_a_leading_answer_stays_in_front():
    lead = Turn("gpt", "hello")
    first, second = split_turns((lead, *dialogue("a", "b", "c", "d")), 1)
    assert first == Part((lead, *dialogue("a", "b")), (), 1, 3)
    assert second == Part(dialogue("c", "d"), (), 4, 5)


@pytest.mark.parametrize(
    "turns",
    [
        dialogue("a", "b", "c"),
        (*dialogue("a", "b"), *dialogue("c", "d")[::-1]),
        (*dialogue("a", "b"), Turn("system", "c"), Turn("gpt", "d")),
    ],
)
def test_what_will_be_refused_is_not_cut(turns):
    assert [part.turns for part in split_turns(turns, 1)] == [turns]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 4))
def test_nothing_is_lost(images, most):
    texts = []
    for number, count in enumerate(images):
        texts += ["<image>" * count + f"q{number}", f"a{number}"]
    parts = split_turns(dialogue(*texts), most)
    answers = [turn.text for part in parts for turn in part.turns if turn.role == "gpt"]
    assert answers == [f"a{number}" for number in range(len(images))]
    assert [part.first for part in parts] == [1, *(part.last + 1 for part in parts[:-1])]
    for part in parts:
        questions = [turn for turn in part.turns if turn.role == "human"]
        assert len(questions) <= most
        assert sum(turn.text.count("<image>") for turn in questions) == len(part.images)
        # Each question keeps its own images, in order.
        shown = iter(part.images)
        for turn in questions:
            number = int(turn.text.rpartition("q")[2])
            own = [next(shown) for _ in range(turn.text.count("<image>"))]
            start = sum(images[:number])
            expected = list(range(start, start + images[number]))
            assert own[len(own) - len(expected) :] == expected
            assert own[: len(own) - len(expected)] in ([], list(range(images[0])))
