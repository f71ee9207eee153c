from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.config.fields import FieldSpec, field_specs, flag


@dataclass(frozen=True, kw_only=True)
class Group:
    count: int = flag(3, "A count", minimum=1)
    size: int | None = flag(None, "A size", from_checkpoint="fixed")
    rate: float = flag(0.5, "A rate", above=0, below=1)
    name: str | None = flag(None, "A name", default_text="yours")
    kind: Literal["a", "b"] | None = flag(None, "A kind")
    on: bool = flag(False, "A switch")
    no_save: bool = flag(False, "A switch that says no")
    parts: tuple[str, ...] = flag(("x", "y"), "Parts")
    mean: tuple[float, ...] | None = flag(None, "Numbers")
    order: Literal["wh", "hw"] = flag("wh", "An order", from_checkpoint="overridable")


def spec(name: str) -> FieldSpec:
    return next(spec for spec in field_specs("group", Group) if spec.name == name)


def test_annotations_are_taken_apart():
    found = [(s.name, s.kind, s.optional, s.choices) for s in field_specs("group", Group)]
    assert found == [
        ("count", "int", False, ()),
        ("size", "int", True, ()),
        ("rate", "float", False, ()),
        ("name", "str", True, ()),
        ("kind", "str", True, ("a", "b")),
        ("on", "bool", False, ()),
        ("no_save", "bool", False, ()),
        ("parts", "list", False, ()),
        ("mean", "numbers", True, ()),
        ("order", "str", False, ("wh", "hw")),
    ]


def test_flag_names():
    assert spec("no_save").option == "--no-save"
    assert spec("no_save").negation == "--save"
    assert spec("on").negation == "--no-on"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "3"),
        ("size", "from the checkpoint"),
        ("name", "yours"),
        ("kind", "none"),
        ("on", "off"),
        ("parts", "x,y"),
        ("order", "from the checkpoint, else wh"),
    ],
)
def test_default_text(name, text):
    assert spec(name).default_text == text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", "7", 7),
        ("count", 7, 7),
        ("size", None, None),
        ("rate", "1e-4", 1e-4),
        ("rate", 1, 1.0),
        ("on", True, True),
        ("kind", "b", "b"),
        ("parts", "x, z", ("x", "z")),
        ("parts", ["x", "z"], ("x", "z")),
        ("parts", "", ()),
        ("parts", [], ()),
        ("mean", "0.5, 1", (0.5, 1.0)),
        ("mean", [0.5, 1], (0.5, 1.0)),
        # An empty name between commas stays, to be refused by name.
        ("parts", "x,,z", ("x", "", "z")),
    ],
)
def test_conversion(name, value, expected):
    converted = spec(name).convert(value)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", None, "needs an integer, got null"),
        ("count", "1.5", "needs an integer, got '1.5'"),
        ("count", 1.5, "needs an integer, got 1.5"),
        ("count", True, "needs an integer, got True"),
        ("rate", "nan", "needs a number, got 'nan'"),
        ("rate", "inf", "needs a number, got 'inf'"),
        ("rate", [1], "needs a number, got [1]"),
        ("rate", False, "needs a number, got False"),
        ("name", 5, "needs a string, got 5"),
        ("on", "yes", "needs true or false, got 'yes'"),
        ("on", 1, "needs true or false, got 1"),
        ("parts", [1], "needs a comma-separated list of strings, got [1]"),
        ("parts", {"x": 1}, "needs a comma-separated list of strings, got {'x': 1}"),
        ("parts", 3, "needs a comma-separated list of strings, got 3"),
        ("mean", "0.5,x", "needs a comma-separated list of numbers, got '0.5,x'"),
        ("mean", 0.5, "needs a comma-separated list of numbers, got 0.5"),
        ("kind", "c", "'c' is not one of a, b"),
    ],
)
def test_refused_values(name, value, message):
    with pytest.raises(ValueError) as raised:
        spec(name).convert(value)
    assert str(raised.value) == message


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_bounds(number):
    try:
        spec("rate").check_bounds(number)
    except ValueError:
        assert not 0 < number < 1
    else:
        assert 0 < number < 1


def test_minimum_is_inclusive():
    spec("count").check_bounds(1)
    with pytest.raises(ValueError, match="0 is too small: give at least 1"):
        spec("count").check_bounds(0)


def test_an_unknown_type_is_a_programming_error():
    @dataclass(kw_only=True)
    class Bad:
        table: dict = flag(None, "No flag has this type")

    with pytest.raises(AssertionError, match="no flag can be made"):
        field_specs("bad", Bad)
