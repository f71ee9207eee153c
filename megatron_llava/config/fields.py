"""Documented fields: a dataclass field that is also a command-line flag and a YAML key.

A group of settings is a ``@dataclass(frozen=True, kw_only=True)`` whose fields are declared with
:func:`flag`. The flag's name is the field's name with dashes; its type is the annotation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

# What a checkpoint's model.yaml says about a field: nothing, the value that the weights were made
# for (a different explicit flag is an error), or a starting value (an explicit flag wins).
FromCheckpoint = Literal["no", "fixed", "overridable"]

_METADATA_KEY = "flag"
_KIND_NAMES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "list": "a comma-separated list of strings",
    "numbers": "a comma-separated list of numbers",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagInfo:
    """What :func:`flag` stores beside a field's type and default."""

    help: str
    minimum: float | None
    above: float | None
    below: float | None
    from_checkpoint: FromCheckpoint
    default_text: str | None
    parse: Callable[[Any], Any] | None


def flag(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    from_checkpoint: FromCheckpoint = "no",
    default_text: str | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a dataclass field that is a flag.

    Args:
        default: the value where neither a flag nor a file gives one.
        help: one line for ``--help``, without the default (it is appended).
        minimum: smallest allowed number, inclusive.
        above: exclusive lower bound.
        below: exclusive upper bound.
        from_checkpoint: how a checkpoint's ``model.yaml`` meets the field (:data:`FromCheckpoint`).
        default_text: what ``--help`` shows as the default where ``default`` does not speak.
        parse: turns a YAML value into the field's type before the type is checked.
    """
    info = FlagInfo(
        help=help,
        minimum=minimum,
        above=above,
        below=below,
        from_checkpoint=from_checkpoint,
        default_text=default_text,
        parse=parse,
    )
    return dataclasses.field(default=default, metadata={_METADATA_KEY: info})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """A declared field with its annotation taken apart.

    Attributes:
        group: name of the group that holds the field, such as ``parallel``.
        kind: ``bool``, ``int``, ``float``, ``str``, ``list`` (a tuple of strings) or ``numbers``
            (a tuple of floats).
        optional: whether ``None`` is a value of the field.
        choices: the allowed strings; empty where any is allowed.
    """

    group: str
    name: str
    kind: str
    optional: bool
    choices: tuple[str, ...]
    default: Any
    info: FlagInfo

    @property
    def option(self) -> str:
        """The flag, such as ``--tensor-model-parallel-size``."""
        return "--" + self.name.replace("_", "-")

    @property
    def negation(self) -> str:
        """The flag that turns a boolean off: ``--no-bf16``, ``--save-optim`` for no_save_optim."""
        name = self.name[3:] if self.name.startswith("no_") else "no_" + self.name
        return "--" + name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default as ``--help`` shows it."""
        if self.info.default_text is not None:
            return self.info.default_text
        if self.default is None:
            return "from the checkpoint" if self.info.from_checkpoint != "no" else "none"
        if self.kind == "bool":
            return "on" if self.default else "off"
        text = ",".join(self.default) if self.kind == "list" else str(self.default)
        return text if self.info.from_checkpoint == "no" else f"from the checkpoint, else {text}"

    def convert(self, value: Any) -> Any:
        """A flag's text or a YAML value as the field's type.

        Raises:
            ValueError: the value is not of the field's type or not among its choices. Bounds are
                left to ``validate``, which sees every source of values.
        """
        if value is None:
            if self.optional:
                return None
            raise ValueError(f"needs {_KIND_NAMES[self.kind]}, got null")
        if self.info.parse is not None:
            value = self.info.parse(value)
        try:
            converted = _CONVERTERS[self.kind](value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"needs {_KIND_NAMES[self.kind]}, got {value!r}") from None
        self.check_choice(converted)
        return converted

    def check_choice(self, value: Any) -> None:
        """Raise ValueError where the field has choices and ``value`` is none of them."""
        if self.choices and value is not None and value not in self.choices:
            raise ValueError(f"{value!r} is not one of {', '.join(self.choices)}")

    def check_bounds(self, value: Any) -> None:
        """Raise ValueError where a number lies outside the declared bounds."""
        info = self.info
        if value is None:
            return
        if info.minimum is not None and value < info.minimum:
            raise ValueError(f"{value} is too small: give at least {info.minimum:g}")
        if info.above is not None and value <= info.above:
            raise ValueError(f"{value} is too small: give a number above {info.above:g}")
        if info.below is not None and value >= info.below:
            raise ValueError(f"{value} is too large: give a number below {info.below:g}")


@functools.cache
def field_specs(group: str, cls: type) -> tuple[FieldSpec, ...]:
    """The specs of a group's fields, in declaration order."""
    hints = get_type_hints(cls)
    specs = []
    for field in dataclasses.fields(cls):
        kind, choices, optional = _take_apart(hints[field.name])
        specs.append(
            FieldSpec(
                group=group,
                name=field.name,
                kind=kind,
                optional=optional,
                choices=choices,
                default=field.default,
                info=field.metadata[_METADATA_KEY],
            )
        )
    return tuple(specs)


def _take_apart(hint: Any) -> tuple[str, tuple[str, ...], bool]:
    """An annotation as (kind, choices, optional)."""
    optional = False
    if get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        assert len(members) == 1, f"a field has one type or None, not {hint}"
        hint, optional = members[0], True
    if get_origin(hint) is Literal:
        return "str", get_args(hint), optional
    if get_origin(hint) is tuple:
        assert get_args(hint) in ((str, ...), (float, ...)), f"no flag can be made of {hint}"
        return "list" if get_args(hint) == (str, ...) else "numbers", (), optional
    assert hint in (bool, int, float, str), f"no flag can be made of the type {hint}"
    return hint.__name__, (), optional


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError
    return int(value)


def _to_float(value: Any) -> float:
    # YAML 1.1 reads 1e-4 (no dot) as a string, so strings are numbers here too.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _to_list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_to_str(part) for part in value)


def _to_numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_to_float(part) for part in value)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bool": _to_bool,
    "int": _to_int,
    "float": _to_float,
    "str": _to_str,
    "list": _to_list,
    "numbers": _to_numbers,
}
