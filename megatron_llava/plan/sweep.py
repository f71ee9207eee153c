"""Sweeps: a YAML file of axes becomes one command line for each combination of their values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import Template
from typing import Any

from megatron_llava.config.cli import parse_args
from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.config.validate import validate
from megatron_llava.config.yaml_file import read_yaml_mapping
from megatron_llava.platform.torchrun import launched_ranks

_KEYS = ("command", "variables", "flags", "axes", "slurm")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_TRAIN = "megatron_llava.train"


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run.

    Attributes:
        name: its value of every axis, joined by underscores.
        values: those by axis.
        program: what is started, without the flags of the sweep.
        flags: the arguments that the sweep gives it.
    """

    name: str
    values: Mapping[str, str]
    program: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command line."""
        return self.program + self.flags


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs in the order of their axes, the last axis changing fastest; options of sbatch."""

    runs: tuple[SweepRun, ...]
    slurm: Mapping[str, Any]


def read_sweep(path: Path, given: Mapping[str, str]) -> Sweep:
    """Expand a sweep file.

    Args:
        given: values for the file's variables, by name.

    Raises:
        ValueError: one line naming the file and what in it, or the run, is wrong.
    """
    content = read_yaml_mapping(str(path))
    for key in content:
        if key not in _KEYS:
            raise ValueError(f"{path}: {key}: unknown; use {', '.join(_KEYS)}")
    for key in ("command", "axes"):
        if not content.get(key):
            raise ValueError(f"{path}: has no {key}")
    if not isinstance(content["command"], str):
        raise ValueError(f"{path}: command: expected one text, found {content['command']!r:.60}")
    variables = _mapping(content.get("variables"), f"{path}: variables")
    for name in given:
        if name not in variables:
            known = f"use {', '.join(map(str, variables))}" if variables else "it has none"
            raise ValueError(f"--set {name}: {path} has no such variable; {known}")
    shared = _spelled(_mapping(content.get("flags"), f"{path}: flags"), f"{path}: flags")
    axes = {
        str(axis): _axis(str(axis), values, path)
        for axis, values in _mapping(content["axes"], f"{path}: axes").items()
    }
    runs = []
    for chosen in product(*(values.items() for values in axes.values())):
        values = dict(zip(axes, (name for name, _ in chosen), strict=True))
        name = "_".join(values.values())
        flags = {**shared, **_joined((flags for _, flags in chosen), f"{path}: run {name}")}
        texts = {**{k: str(v) for k, v in variables.items()}, **given, "run": name}
        runs.append(
            SweepRun(
                name=name,
                values=values,
                program=tuple(shlex.split(_filled(content["command"], texts, f"{path}: command"))),
                flags=tuple(_arguments(flags, texts, f"{path}: run {name}")),
            )
        )
    return Sweep(runs=tuple(runs), slurm=_mapping(content.get("slurm"), f"{path}: slurm"))


def check_flags(run: SweepRun) -> None:
    """Parse the flags of a run of training; others are left to their program.

    Those of a model that --model names are also held against each other. Another model is in a
    checkpoint, which an earlier run may make.

    Raises:
        SystemExit: a line that names the run and the flag has been printed.
        ValueError: one line that names the run, of flags that do not go together.
    """
    if _TRAIN not in run.program:
        return
    at = run.program.index(_TRAIN)
    config = parse_args([*run.program[at + 1 :], *run.flags], prog=f"sweep.py: run {run.name}")
    model, ranks = config.checkpoint.model, launched_ranks(run.program[:at])
    if model is None or ranks is None:
        return
    if config.parallel.device == "auto":
        config = config.with_values({"device": "cuda"}, "default")
    try:
        config = fill_named_model(config, model)
        validate(config, ranks)
    except ValueError as error:
        raise ValueError(f"run {run.name}: {error}") from None


def slurm_script(sweep: Sweep, job: str) -> str:
    """A script for sbatch: an array with a task for each run."""
    options = {"job-name": job, "array": f"0-{len(sweep.runs) - 1}", **sweep.slurm}
    lines = ["#!/usr/bin/env bash"]
    lines += [f"#SBATCH --{k}" + ("" if v is True else f"={v}") for k, v in options.items()]
    lines += ["set -euo pipefail", 'cd "${SLURM_SUBMIT_DIR:-.}"']
    # The command takes the place of the shell, and with it the signals of the job.
    lines += ['case "$SLURM_ARRAY_TASK_ID" in']
    lines += [f"{n}) exec {shlex.join(run.command)} ;;" for n, run in enumerate(sweep.runs)]
    return "\n".join([*lines, "esac", ""])


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected names with values, found {value!r}")
    return value


def _spelled(flags: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Flags as a command line has them, so that `min_lr` and `min-lr` are one."""
    spelled: dict[str, Any] = {}
    for flag, value in flags.items():
        name = str(flag).replace("_", "-")
        if name in spelled:
            raise ValueError(f"{where}: {name} is given twice")
        spelled[name] = value
    return spelled


def _axis(axis: str, values: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The flags of each value: a list is of values of the flag that the axis is named after."""
    if isinstance(values, list):
        values = {str(value): {axis: value} for value in values}
    found = {
        str(name): _spelled(_mapping(flags, f"{path}: {axis}: {name}"), f"{path}: {axis}: {name}")
        for name, flags in _mapping(values, f"{path}: {axis}").items()
    }
    if not found:
        raise ValueError(f"{path}: {axis}: has no values")
    for name in found:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{path}: {axis}: {name!r} cannot be part of a run's name: use letters, digits, "
                "'.', '+' and '-', as in 2x2: {flag: value}"
            )
    return found


def _joined(parts: Iterator[dict[str, Any]], where: str) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for flags in parts:
        for flag, value in flags.items():
            if flag in joined:
                raise ValueError(f"{where}: two axes set {flag}")
            joined[flag] = value
    return joined


def _arguments(flags: Mapping[str, Any], texts: Mapping[str, str], where: str) -> Iterator[str]:
    for flag, value in flags.items():
        if value is None:
            continue  # an axis takes a flag of all runs away
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            items = value if isinstance(value, list) else [value]
            text = _filled(",".join(map(str, items)), texts, f"{where}: {flag}")
            yield f"--{flag}={text}"


def _filled(text: str, texts: Mapping[str, str], where: str) -> str:
    try:
        return Template(text).substitute(texts)
    except (KeyError, ValueError):
        known = ", ".join(f"${name}" for name in texts)
        raise ValueError(f"{where}: {text!r} names what is none of {known}") from None
