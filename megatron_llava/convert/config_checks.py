"""What a setting of a Hugging Face config.json may be; each error is one line that names it.

They take what has the setting, and the prefix that a message puts before a key, such as
`vision_config.`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def choice(section: dict[str, Any], key: str, supported: Iterable[str], prefix: str) -> str:
    """The value of a setting that is one of some names."""
    value = section.get(key)
    if not isinstance(value, str) or value not in supported:
        names = ", ".join(sorted(supported))
        raise ValueError(f"config.json: {prefix}{key} is {value!r}; supported: {names}")
    return value


def check_kinds(section: dict[str, Any], examples: dict[str, Any], prefix: str) -> None:
    """Refuse settings that are not of the kind of an example, such as text for a number.

    An int stands for a positive number of things; without an example a setting may be null.
    """
    for key, example in examples.items():
        value = section[key]
        if value is None and (example is None or key == "sliding_window"):
            continue
        if isinstance(example, dict):
            is_good, wanted = isinstance(value, dict), "an object"
        elif isinstance(example, bool):
            is_good, wanted = isinstance(value, bool), "true or false"
        elif isinstance(example, float):
            is_good, wanted = isinstance(value, (int, float)) and value > 0, "a positive number"
        elif isinstance(example, str):
            is_good, wanted = isinstance(value, str), "a name"
        else:
            is_good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            wanted = "a positive whole number"
        if not is_good:
            raise ValueError(f"config.json: {prefix}{key} is {value!r}; give {wanted}")


def three_numbers(value: Any, name: str) -> list[float]:
    """One number for each colour; ValueError naming the setting for anything else."""
    if not (isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))):
        raise ValueError(f"{name} is {value!r:.60}; give three numbers")
    return [float(number) for number in value]


def number_pairs(value: Any, name: str) -> list[list[int]]:
    """A list of grids in pixels; ValueError naming the setting for anything else."""
    if not isinstance(value, list) or not value or not all(map(_is_pair, value)):
        raise ValueError(f"{name} is {value!r:.60}; give a list of pairs of whole numbers")
    return [list(pair) for pair in value]


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(number, int) and _is_number(number) and number > 0 for number in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require(section: dict[str, Any], key: str, expected: Any, prefix: str) -> None:
    """Refuse a setting that is given and is not the only value that is supported."""
    if section.get(key, expected) != expected:
        raise ValueError(f"config.json: {prefix}{key} is {section[key]!r}; supported: {expected!r}")


def check_heads(hidden: int, heads: int, prefix: str) -> None:
    """Refuse a width that the heads do not divide."""
    if hidden % heads:
        raise ValueError(
            f"config.json: {prefix}hidden_size is {hidden}, "
            f"no multiple of num_attention_heads {heads}"
        )
