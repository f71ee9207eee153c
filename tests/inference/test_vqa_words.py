"""Answers are made plain by the rules of VQAv2, which were followed by hand for each of these."""

import pytest

from megatron_llava.inference.vqa_words import vqa_words


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("Yall", "y'all"),
        ("yall'll", "y'all'll"),
        ("oclock", "o'clock"),
        ("twas", "'twas"),
        ("wont", "won't"),
        # Words of their own, and possessives.
        ("its", "its"),
        ("it's", "it's"),
        ("well", "well"),
        ("shed", "shed"),
        ("were", "were"),
        ("men's", "men's"),
        ("dogs", "dogs"),
    ],
)
def test_only_contractions_get_their_apostrophes_back(text, plain):
    assert vqa_words(text) == plain


@pytest.mark.proves("E4")
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("red-blue", "red blue"),
        ("red -blue", "red blue"),
        ("red- blue-green", "red bluegreen"),
        # Whether a sign is beside a space is asked of the answer as it was given.
        ("x/-y-z", "x y z"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("a.b", "ab"),
        ("3.5", "3.5"),
        (".5 m.", ".5 m"),
        ("One, Two\nthe  None", "1 2 0"),
    ],
)
def test_signs_part_words_or_go(text, plain):
    assert vqa_words(text) == plain
