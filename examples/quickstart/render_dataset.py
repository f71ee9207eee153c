"""Render the synthetic picture questions of the quickstart in LLaVA's record format.

Every record is one question about one picture of plain shapes.  Answers are balanced within each
kind, so guessing without the picture reaches 1 / (number of answers) of that kind and no more;
picture sizes vary, so that AnyRes chooses different grids.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 220, 30),
    "purple": (140, 40, 180),
    "cyan": (40, 205, 225),
}
# Share of the picture's width and height that the shape covers: far apart, so that a shape is
# never of two sizes.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.20, 0.28),
    "medium": (0.42, 0.52),
    "large": (0.72, 0.88),
}
POSITIONS: dict[str, tuple[float, float]] = {
    "left": (0.2, 0.5),
    "right": (0.8, 0.5),
    "top": (0.5, 0.2),
    "bottom": (0.5, 0.8),
    "center": (0.5, 0.5),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLAIN_SHAPES = ("circle", "square")
COUNTS = ("1", "2", "3", "4")

# (width, height) in pixels.  With tiles of 56 these reach every grid of make_checkpoint.py: most
# are no wider than a tile on one side, because a grid of two tiles costs the fewest tokens.
PICTURE_SIZES: tuple[tuple[int, int], ...] = (
    (56, 56),
    (48, 72),
    (52, 88),
    (56, 100),
    (56, 112),
    (72, 48),
    (88, 52),
    (100, 56),
    (112, 56),
    (56, 168),
    (168, 56),
    (112, 112),
    (84, 96),
)
PICTURE_WEIGHTS: tuple[int, ...] = (4,) * 9 + (1,) * 4


@dataclass(kw_only=True)
class Scene:
    """A picture being drawn and the question it answers.

    ``rng`` decides everything that is not fixed by the answer.
    """

    rng: random.Random
    image: Image.Image
    question: str = ""
    draw: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.image)

    def fill(self, grey: int) -> None:
        """Paint the whole picture a grey (0 to 255) with a slight tint."""
        r, g, b = (grey + self.rng.randint(-12, 12) for _ in range(3))
        self.draw.rectangle((0, 0, *self.image.size), fill=(r, g, b))

    def colour(self, name: str) -> Colour:
        """Return the named colour, each channel moved by up to 12 of 255."""
        r, g, b = (min(255, max(0, c + self.rng.randint(-12, 12))) for c in COLOURS[name])
        return r, g, b

    def shape(self, shape: str, colour: str, centre: tuple[float, float], extent: float) -> None:
        """Draw ``shape`` with ``centre`` and ``extent`` given as shares of the picture's sides."""
        width, height = self.image.size
        half_width, half_height = extent * width / 2, extent * height / 2
        x, y = centre[0] * width, centre[1] * height
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        draw_shape(self.draw, shape, box, self.colour(colour))

    def near(self, centre: tuple[float, float], spread: float) -> tuple[float, float]:
        """Return ``centre`` moved by up to ``spread`` (a share of the side) each way."""
        move = self.rng.uniform
        return centre[0] + move(-spread, spread), centre[1] + move(-spread, spread)


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: Box, colour: Colour) -> None:
    """Fill ``box`` (left, top, right, bottom in pixels) with one of SHAPES."""
    left, top, right, bottom = box
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=colour)
    else:
        third_x, third_y = (right - left) / 3, (bottom - top) / 3
        draw.rectangle((left + third_x, top, right - third_x, bottom), fill=colour)
        draw.rectangle((left, top + third_y, right, bottom - third_y), fill=colour)


def ask_colour(scene: Scene, answer: str) -> None:
    """One shape anywhere: what colour is it?"""
    scene.question = "What color is the shape?"
    centre = scene.near((0.5, 0.5), 0.2)
    scene.shape(scene.rng.choice(PLAIN_SHAPES), answer, centre, scene.rng.uniform(0.3, 0.6))


def ask_size(scene: Scene, answer: str) -> None:
    """One shape near the middle: small, medium or large?"""
    scene.question = "What size is the shape?"
    colour = scene.rng.choice(tuple(COLOURS))
    centre = scene.near((0.5, 0.5), 0.04)
    extent = scene.rng.uniform(*SIZES[answer])
    scene.shape(scene.rng.choice(PLAIN_SHAPES), colour, centre, extent)


def ask_position(scene: Scene, answer: str) -> None:
    """One shape at an edge or in the middle: where is it?"""
    scene.question = "Where is the shape?"
    colour = scene.rng.choice(tuple(COLOURS))
    centre = scene.near(POSITIONS[answer], 0.05)
    extent = scene.rng.uniform(0.36, 0.44)
    scene.shape(scene.rng.choice(PLAIN_SHAPES), colour, centre, extent)


def ask_side_colour(side: str) -> Callable[[Scene, str], None]:
    """Two shapes of different colours: return the asker for the one on ``side``."""

    def ask(scene: Scene, answer: str) -> None:
        scene.question = f"What color is the {side} shape?"
        other = scene.rng.choice([name for name in COLOURS if name != answer])
        names = (answer, other) if side == "left" else (other, answer)
        for name, x in zip(names, (0.25, 0.75), strict=True):
            centre = scene.near((x, 0.5), 0.04)
            extent = scene.rng.uniform(0.34, 0.42)
            scene.shape(scene.rng.choice(PLAIN_SHAPES), name, centre, extent)

    return ask


def ask_dark(scene: Scene, answer: str) -> None:
    """One shape on a light or a dark background: is the background dark?"""
    scene.question = "Is the background dark?"
    if answer == "yes":
        scene.fill(scene.rng.randint(40, 80))
    centre = scene.near((0.5, 0.5), 0.2)
    colour = scene.rng.choice(tuple(COLOURS))
    scene.shape(scene.rng.choice(PLAIN_SHAPES), colour, centre, scene.rng.uniform(0.3, 0.6))


def ask_shape(scene: Scene, answer: str) -> None:
    """One shape: which?"""
    scene.question = "What shape is this?"
    colour = scene.rng.choice(tuple(COLOURS))
    centre = scene.near((0.5, 0.5), 0.1)
    scene.shape(answer, colour, centre, scene.rng.uniform(0.5, 0.7))


def ask_count(scene: Scene, answer: str) -> None:
    """One to four shapes in the quarters of the picture: how many?"""
    scene.question = "How many shapes are there?"
    quarters = list(itertools.product((0.25, 0.75), repeat=2))
    for centre in scene.rng.sample(quarters, int(answer)):
        colour = scene.rng.choice(tuple(COLOURS))
        extent = scene.rng.uniform(0.24, 0.32)
        scene.shape(scene.rng.choice(PLAIN_SHAPES), colour, scene.near(centre, 0.05), extent)


def ask_color_match(scene: Scene, answer: str) -> None:
    """One shape: is it of the named colour?"""
    asked = scene.rng.choice(tuple(COLOURS))
    others = [name for name in COLOURS if name != asked]
    scene.question = f"Is the shape {asked}?"
    colour = asked if answer == "yes" else scene.rng.choice(others)
    centre = scene.near((0.5, 0.5), 0.2)
    scene.shape(scene.rng.choice(PLAIN_SHAPES), colour, centre, scene.rng.uniform(0.3, 0.6))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of question: its possible answers and the function that draws one of them.

    ``share`` is its weight among the training questions.  The kinds about a place need some 3000
    questions each before they are learned, the others a few hundred.
    """

    name: str
    answers: tuple[str, ...]
    ask: Callable[[Scene, str], None]
    share: int = 1


KINDS: tuple[Kind, ...] = (
    Kind(name="color", answers=tuple(COLOURS), ask=ask_colour),
    Kind(name="size", answers=tuple(SIZES), ask=ask_size),
    Kind(name="position", answers=tuple(POSITIONS), ask=ask_position, share=3),
    Kind(name="left_color", answers=tuple(COLOURS), ask=ask_side_colour("left"), share=2),
    Kind(name="yes_no", answers=("yes", "no"), ask=ask_dark),
)
HARD_KINDS: tuple[Kind, ...] = (
    Kind(name="shape", answers=SHAPES, ask=ask_shape),
    Kind(name="count", answers=COUNTS, ask=ask_count),
    Kind(name="right_color", answers=tuple(COLOURS), ask=ask_side_colour("right")),
    Kind(name="color_match", answers=("yes", "no"), ask=ask_color_match),
)


def balanced_answers(
    kinds: Sequence[Kind], number: int, rng: random.Random
) -> list[tuple[Kind, str]]:
    """Return ``number`` shuffled (kind, answer) pairs.

    The kinds take turns (a kind listed twice has two), and within a kind its answers take turns,
    so the counts of its answers differ by at most one.
    """
    turns: dict[str, Iterator[str]] = {kind.name: itertools.cycle(kind.answers) for kind in kinds}
    order = itertools.islice(itertools.cycle(kinds), number)
    pairs = [(kind, next(turns[kind.name])) for kind in order]
    rng.shuffle(pairs)
    return pairs


def draw_scene(kind: Kind, answer: str, rng: random.Random) -> Scene:
    """Draw one picture for ``answer`` on a light grey background."""
    size = rng.choices(PICTURE_SIZES, PICTURE_WEIGHTS)[0]
    scene = Scene(rng=rng, image=Image.new("RGB", size))
    scene.fill(rng.randint(190, 240))
    kind.ask(scene, answer)
    return scene


def digest(image: Image.Image) -> bytes:
    """Return 16 bytes that stand for the size and the pixels of ``image``."""
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()


def write_split(
    output: Path,
    split: str,
    pairs: list[tuple[Kind, str]],
    rng: random.Random,
    seen: set[bytes],
) -> None:
    """Write ``output/images/SPLIT_*.png`` and ``output/SPLIT.json``.

    ``seen`` holds a digest of every picture so far: one that was drawn before is drawn anew,
    so that no picture occurs twice, within a split or across the splits.
    """
    records: list[dict[str, Any]] = []
    for index, (kind, answer) in enumerate(pairs):
        scene = draw_scene(kind, answer, rng)
        while (key := digest(scene.image)) in seen:
            scene = draw_scene(kind, answer, rng)
        seen.add(key)
        name = f"{split}_{index:06d}"
        scene.image.save(output / "images" / f"{name}.png", compress_level=1)
        turns = [
            {"from": "human", "value": f"<image>\n{scene.question}"},
            {"from": "gpt", "value": answer},
        ]
        records.append(
            {
                "id": name,
                "image": f"images/{name}.png",
                "conversations": turns,
                "kind": kind.name,
            }
        )
    (output / f"{split}.json").write_text(json.dumps(records, indent=1) + "\n", encoding="ascii")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=16000, help="training questions")
    parser.add_argument("--valid", type=int, default=600, help="held-out questions")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument(
        "--hard", action="store_true", help="add shape, count, right_color and color_match"
    )
    args = parser.parse_args(arguments)
    for flag in ("train", "valid"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} is {getattr(args, flag)}: it must be at least 1")
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    kinds = KINDS + (HARD_KINDS if args.hard else ())
    rng = random.Random(args.seed)
    seen: set[bytes] = set()
    weighted = [kind for kind in kinds for _ in range(kind.share)]
    for split, number, turns in (("train", args.train, weighted), ("valid", args.valid, kinds)):
        write_split(args.output, split, balanced_answers(turns, number, rng), rng, seen)
    print(f"wrote {args.train} training and {args.valid} held-out questions to {args.output}")


if __name__ == "__main__":
    main()
