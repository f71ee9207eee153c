"""Where the images of a conversation with several stand: among the words, or all in front.

    interleaved   <image> is older than <image>?      (as written)
    front         <image>
                  <image>
                  Image 1 is older than Image 2?

LLaVA-NeXT-Interleave trains with both, so that both can be asked. Its data came converted and its
code has no such step; "Image 1" as what stands for a moved image is ours. A single image is placed
by `place_image` whatever is chosen here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import count

from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.templates import Turn


def front_share(text: str) -> float:
    """The share of conversations in the front format that a --multi-image-placement means.

    text: `interleaved` (0), `front` (1), or `mixed:S` with 0 < S < 1.

    Raises:
        ValueError: another text.
    """
    if text in ("interleaved", "front"):
        return float(text == "front")
    match = re.fullmatch(r"mixed:(0?\.[0-9]+)", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(
            f"--multi-image-placement {text}: expected interleaved, front or mixed:S with a share "
            "S between 0 and 1 in front, such as mixed:0.5"
        )
    return float(match[1])


def place_images(turns: Sequence[Turn], share: float, seed: int) -> tuple[Turn, ...]:
    """Move all images of a share of conversations to the front of their first human turn.

    Which ones depends on the seed and the words alone, so on no machine and no order.
    """
    texts = [turn.text for turn in turns]
    images = sum(t.text.count(IMAGE_PLACEHOLDER) for t in turns if t.role == "human")
    if images < 2 or _draw(texts, seed) >= share:
        return tuple(turns)
    first = next(number for number, turn in enumerate(turns) if turn.role == "human")
    numbers = count(1)
    placed = []
    for position, turn in enumerate(turns):
        if turn.role == "human":
            turn = turn._replace(text=_in_front(turn.text, numbers))
        if position == first:
            turn = turn._replace(text=f"{IMAGE_PLACEHOLDER}\n" * images + turn.text)
        placed.append(turn)
    return tuple(placed)


def _in_front(text: str, numbers: count[int]) -> str:
    """A text whose images stand elsewhere."""
    # Images on lines of their own before the text are not spoken of.
    head = re.match(rf"(?:\s*{IMAGE_PLACEHOLDER})+[ \t]*(?:\n\s*|$)", text)
    if head is None:
        return _spoken_of(text, numbers)
    for _ in range(head[0].count(IMAGE_PLACEHOLDER)):
        next(numbers)
    return _spoken_of(text[head.end() :], numbers)


def _spoken_of(text: str, numbers: count[int]) -> str:
    return re.sub(IMAGE_PLACEHOLDER, lambda _: f"Image {next(numbers)}", text)


def _draw(texts: Sequence[str], seed: int) -> float:
    """A number in [0, 1) of a conversation."""
    digest = hashlib.sha256(repr((seed, list(texts))).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "little") / 2**56
