"""Settings in YAML: reading a mapping of field names, and writing one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any

import yaml

from megatron_llava.config.fields import FieldSpec
from megatron_llava.config.run import all_fields, group_classes


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            # A merged mapping (<<) may be overridden, so only written keys are compared.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_yaml_mapping(path: str) -> dict[Any, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ValueError: the file cannot be read, is not YAML, or is not a mapping; names the file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a mapping of settings")
    return content


def field_values(
    mapping: Mapping[Any, Any], source: str, groups: Iterable[str] | None = None
) -> dict[str, Any]:
    """The fields that a mapping sets, converted to their types.

    Keys are field names with dashes or underscores, at the top or inside a mapping under their
    group's name. A null leaves a field that may be None, or that a checkpoint fills, as it is.

    Args:
        mapping: what a YAML file holds.
        source: the file's name, for messages.
        groups: the groups whose fields may be set; all where None.

    Raises:
        ValueError: an unknown key (with the nearest known ones), a field under another group or
            given twice, or a value of the wrong type; names the file and the key.
    """
    allowed = set(group_classes() if groups is None else groups)
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key in allowed and isinstance(value, (Mapping, NoneType)):
            # Of a group whose settings are all comments there is nothing.
            for inner_key, inner_value in (value or {}).items():
                _set_field(values, inner_key, inner_value, source, {str(key)})
        else:
            _set_field(values, key, value, source, allowed)
    return {name: value for name, value in values.items() if value is not None}


def _set_field(values: dict[str, Any], key: Any, value: Any, source: str, groups: set[str]) -> None:
    name = str(key).replace("-", "_")
    spec = all_fields().get(name)
    if spec is None:
        known = [spec.name for spec in all_fields().values() if spec.group in groups]
        raise ValueError(f"{source}: unknown key {key}{close_matches(name, known)}")
    if spec.group not in groups:
        raise ValueError(
            f"{source}: {key} belongs to {spec.group}, not to {', '.join(sorted(groups))}"
        )
    if name in values:
        raise ValueError(f"{source}: {key} is given twice")
    if value is None and spec.info.from_checkpoint != "no":
        values[name] = None
        return
    try:
        values[name] = spec.convert(value)
    except ValueError as error:
        raise ValueError(f"{source}: {key} {error}") from None


def close_matches(name: str, known: Iterable[str]) -> str:
    """A question that ends a message on an unknown name; empty where nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def write_yaml(
    choose: Callable[[FieldSpec], bool],
    value: Callable[[FieldSpec], Any],
    comment: Callable[[FieldSpec], str],
) -> str:
    """Fields as YAML, nested by group.

    Args:
        choose: which fields are written.
        value: what is written for a field.
        comment: what follows a field's value as a comment; nothing where empty.
    """
    lines: list[str] = []
    for group in group_classes():
        specs = [spec for spec in all_fields().values() if spec.group == group and choose(spec)]
        if specs:
            lines.append(f"{group}:")
        for spec in specs:
            remark = comment(spec)
            lines.append(
                f"  {spec.name}: {_scalar(value(spec))}" + (f"  # {remark}" if remark else "")
            )
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    # Inside a list a lone scalar is written without a document end; the width forbids line breaks.
    return yaml.safe_dump([value], default_flow_style=True, width=2**31).strip()[1:-1]
