"""What a task of lmms-eval asks of a question; written beside the task, so it imports nothing of
this package."""

from __future__ import annotations

from typing import Any

from PIL import Image


def images(doc: dict[str, Any]) -> list[Image.Image]:
    """The images of a question, in front of its words."""
    return [Image.open(path).convert("RGB") for path in doc["images"]]


def question(doc: dict[str, Any]) -> str:
    """Its words."""
    return str(doc["question"])


def truth(doc: dict[str, Any]) -> str:
    """The first of its answers."""
    return str(doc["truths"][0])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether one of its answers was given, as tools/evaluate.py compares them."""
    given = results[0].strip().lower()
    return {"exact_match": float(any(given == text.strip().lower() for text in doc["truths"]))}
