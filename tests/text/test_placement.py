"""Images of a conversation among the words or in front of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.text.placement import front_share, place_images
from megatron_llava.text.templates import Turn

TURNS = (
    Turn("system", "Be kind."),
    Turn("human", "<image> is older than <image>?"),
    Turn("gpt", "No."),
    Turn("human", "<image>\nAnd this, beside <image>?"),
    Turn("gpt", "Yes."),
)


@pytest.mark.proves("C3")
def test_all_in_front() -> None:
    placed = place_images(TURNS, 1.0, seed=0)
    assert [turn.text for turn in placed] == [
        "Be kind.",
        "<image>\n<image>\n<image>\n<image>\nImage 1 is older than Image 2?",
        "No.",
        "And this, beside Image 4?",
        "Yes.",
    ]
    assert [turn.role for turn in placed] == [turn.role for turn in TURNS]


@pytest.mark.proves("C3")
def test_as_written() -> None:
    assert place_images(TURNS, 0.0, seed=0) == TURNS


@pytest.mark.parametrize("text", ["no image", "one <image> inside", "<image>\nin front"])
def test_fewer_than_two_images_stay(text: str) -> None:
    turns = (Turn("human", text), Turn("gpt", "<image> <image> are words of an answer"))
    assert place_images(turns, 1.0, seed=0) == turns


@pytest.mark.proves("C3")
def test_a_share_is_drawn_by_seed_and_words() -> None:
    conversations = [(Turn("human", f"<image> or <image> {i}?"), TURNS[2]) for i in range(2000)]

    def moved(share: float, seed: int) -> list[bool]:
        return [place_images(turns, share, seed) != turns for turns in conversations]

    assert moved(0.3, 1) == moved(0.3, 1)
    assert moved(0.3, 1) != moved(0.3, 2)
    assert abs(sum(moved(0.3, 1)) / 2000 - 0.3) < 0.03
    # A larger share moves what a smaller one does, and more.
    assert all(large >= small for small, large in zip(moved(0.3, 1), moved(0.6, 1), strict=True))


@pytest.mark.proves("C3")
@given(st.lists(st.text("ab \n") | st.just("<image>"), min_size=1, max_size=8))
def test_no_image_is_lost_or_added(parts: list[str]) -> None:
    turns = (Turn("human", "".join(parts)), Turn("gpt", "x"), Turn("human", "<image>b<image>"))
    placed = place_images(turns, 1.0, seed=0)
    before, after = ("".join(turn.text for turn in t).count("<image>") for t in (turns, placed))
    assert before == after == placed[0].text.count("<image>")


@pytest.mark.parametrize(
    ("text", "share"), [("interleaved", 0), ("front", 1), ("mixed:0.25", 0.25), ("mixed:.5", 0.5)]
)
def test_shares(text: str, share: float) -> None:
    assert front_share(text) == share


@pytest.mark.parametrize(
    "text", ["", "back", "mixed", "mixed:0", "mixed:0.0", "mixed:1", "mixed:2"]
)
def test_refused_shares(text: str) -> None:
    with pytest.raises(ValueError, match=f"--multi-image-placement {text}: expected interleaved"):
        front_share(text)
