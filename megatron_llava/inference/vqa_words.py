"""Answers as VQAv2 compares them: without case, punctuation and articles, digits for number words.

The rules are those of VQAv2's own evaluation, which tells "dogs" from "dog's" but not "dont" from
"don't".
"""

from __future__ import annotations

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# Words that a contraction begins with. Those that would be another word without the apostrophe, as
# "we're" and "its", are not among them, and none of "I": the original looks for it in lower case.
_BEGINNINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were "
    "wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who y'all you",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'am": "ma",
    "'clock": "o",
    "'all": "y",
    "'twas": "",
}


def _contractions() -> dict[str, str]:
    """Contractions that lack one of their apostrophes, beside the whole ones."""
    whole_by_part = {}
    for end, beginnings in _BEGINNINGS.items():
        for beginning in beginnings.split() or [""]:
            whole = beginning + end
            for match in re.finditer("'", whole):
                whole_by_part[whole[: match.start()] + whole[match.end() :]] = whole
    return whole_by_part


_CONTRACTIONS = _contractions()


def vqa_words(text: str) -> str:
    """The words of an answer that count, with one space between them."""
    text = " ".join(text.split())
    plain = text
    # A comma between digits anywhere makes the original drop every sign of the answer.
    in_number = re.search(r"\d,\d", text) is not None
    for sign in _PUNCTUATION:
        # A sign within a word parts it; beside a space it goes.
        goes = in_number or f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if goes else " ")
    plain = re.sub(r"\.(?!\d)", "", plain).lower()
    words = [_DIGITS.get(word, word) for word in plain.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
