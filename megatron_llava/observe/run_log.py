"""The JSONL log of a run, read back: values by column and step, and each start of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]

START = "start"
"""The ``event`` of the line that each start of a run writes to its log."""
STEP = "iteration"
LOSSES = ("lm loss", "user loss", "align loss")
"""A line of training has the first, with --loss-function the second, or of the alignment alone the
third."""
# Beyond it, the width of an axis need not be a number any more.
_LARGEST = 1e300


def settings_digest(run_yaml: str) -> str:
    """What a log says of the settings of its run: SHA-256 of the run.yaml that they make."""
    return hashlib.sha256(run_yaml.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run.

    Attributes:
        iteration: steps done before it.
        time: UTC, in ISO 8601.
        settings: the ``settings_digest`` of the run's settings.
        environment: what it computed with, by name.
    """

    iteration: int
    time: str
    settings: str
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """What is in force of a log: where a run went back to an earlier step, the later lines.

    Attributes:
        steps: lines of training by the step that they end with, ascending.
        first_step, last_step: of the lines in force, 0 where there is none.
        columns: of every numeric column {step: value}; None where the value is no finite number.
        starts: empty where an older version wrote the log.
        replaced: lines that later ones stand for.
        torn: numbers of lines that a crash cut short, which are left out.
    """

    path: Path
    steps: dict[int, Record]
    first_step: int
    last_step: int
    columns: dict[str, dict[int, float | None]]
    starts: tuple[Start, ...]
    replaced: int
    torn: tuple[int, ...]

    @property
    def first_start(self) -> int:
        """Steps done before the first that the log can tell of: a log may begin with a resume."""
        return min((start.iteration for start in self.starts), default=0)

    def finite(self, column: str) -> list[float]:
        """The finite values of a column in the order of their steps; empty where it is absent."""
        return [value for value in self.columns.get(column, {}).values() if value is not None]


def total(steps: Mapping[int, Record], per_second: str | None = None, before: int = 0) -> float:
    """A rate of a log times its seconds, over all steps that it tells of; without a rate, seconds.

    Saves and evaluations are not in a log's seconds.

    Args:
        before: steps done before the first line.
    """
    added = 0.0
    for step in sorted(steps):
        record = steps[step]
        rate = 1.0 if per_second is None else _finite(record.get(per_second)) or 0.0
        added += rate * (_finite(record.get("s/step")) or 0.0) * (step - before)
        before = step
    return added


def read_log(path: str | Path) -> RunLog:
    """Read what ``--log-file`` named.

    A line that a crash cut short is left out and counted, if it is the last one or a start comes
    after it.

    Raises:
        ValueError: the file cannot be read, or a line is none of a log.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot read the log: {error.strerror}") from None
    kept, starts, torn = _scanned(lines, path)
    return RunLog(
        path=path,
        steps=kept.steps(),
        first_step=kept.lines[0][0] if kept.lines else 0,
        last_step=kept.lines[-1][0] if kept.lines else 0,
        columns=kept.columns(),
        starts=tuple(starts),
        replaced=kept.replaced,
        torn=tuple(torn),
    )


def _scanned(lines: list[bytes], path: Path) -> tuple[_InForce, list[Start], list[int]]:
    """What is in force of the lines, the starts, and the numbers of lines that are cut short."""
    kept, starts, torn = _InForce(), [], []
    broken: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _parsed(line)
        except ValueError as error:
            if broken is not None:
                break
            broken = (number, str(error))
            continue
        is_start = record.get("event") == START
        if broken is not None and not is_start:
            break
        if broken is not None:
            torn.append(broken[0])
            broken = None
        if is_start:
            starts.append(_start(record, f"{path}:{number}"))
            kept.go_back_to(starts[-1].iteration)
        elif STEP in record:
            kept.add(_step(record, f"{path}:{number}"), record)
    # Only what does not end with the end of a line can have been cut short last.
    if broken is not None and broken[0] != len(lines):
        raise ValueError(f"{path}:{broken[0]}: not a line of a log ({broken[1]})")
    return kept, starts, [*torn, *([broken[0]] if broken else [])]


@dataclass
class _InForce:
    """Lines by ascending step; a line of an earlier step takes back those after it."""

    lines: list[tuple[int, Record]] = field(default_factory=list)
    replaced: int = 0

    def go_back_to(self, step: int) -> None:
        while self.lines and self.lines[-1][0] > step:
            self.lines.pop()
            self.replaced += 1

    def add(self, step: int, record: Record) -> None:
        self.go_back_to(step)
        same: list[tuple[int, Record]] = []
        while self.lines and self.lines[-1][0] == step:
            same.insert(0, self.lines.pop())
        # A held-out loss has a line of its own beside that of its step.
        beside = [line for line in same if not {*line[1]} & {*record} - {STEP}]
        self.replaced += len(same) - len(beside)
        self.lines += [*beside, (step, record)]

    def steps(self) -> dict[int, Record]:
        return {step: record for step, record in self.lines if {*LOSSES} & {*record}}

    def columns(self) -> dict[str, dict[int, float | None]]:
        found: dict[str, dict[int, float | None]] = {}
        for step, record in self.lines:
            for name, value in record.items():
                if name != STEP and (value is None or _is_number(value)):
                    found.setdefault(name, {})[step] = _finite(value)
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    """None for what has no place on an axis; not a number is neither."""
    return float(value) if _is_number(value) and -_LARGEST < value < _LARGEST else None


def _parsed(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object")
    return record


def _step(record: Record, where: str) -> int:
    step = record.get(STEP)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
        raise ValueError(f"{where}: {STEP} is {step!r:.40}, not the number of a step")
    return step


def _start(record: Record, where: str) -> Start:
    environment = record.get("environment")
    return Start(
        iteration=_step(record, where),
        time=str(record.get("time", "")),
        settings=str(record.get("settings", "")),
        environment={str(name): str(value) for name, value in environment.items()}
        if isinstance(environment, dict)
        else {},
    )
