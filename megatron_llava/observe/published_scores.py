"""Scores that others published, as reference data, and their maxima, means and differences.

None of them was measured here; ``published_scores.yaml`` has them with their sources.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_llava.config.yaml_file import read_yaml_mapping

_FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """A published table; cells are texts without marks.

    Attributes:
        source: the document that has it.
        labels: leading columns that are no scores.
        marked: (row, column) of the cells that were published in bold.
        headings: for rows of a merged view, the title of the table that begins there.
        best: "columns" or "rows", where the greatest number is looked for.
        best_within: a label; only rows that share it are compared.
        group: of tables that make one merged view, empty for none.
        mean: the column that is the mean of those behind it but ``mean_without``, empty for none.
        difference: column, the column that it is a gain of, and the one that it is a gain over.
    """

    name: str
    title: str
    source: str
    labels: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[tuple[int, int]] = frozenset()
    headings: tuple[tuple[int, str], ...] = ()
    best: str = "columns"
    best_within: str = ""
    group: str = ""
    mean: str = ""
    mean_without: tuple[str, ...] = ()
    difference: tuple[str, str, str] | None = None
    note: str = ""

    def score(self, row: int, column: int) -> float | None:
        """The number in a cell, None for a label or a cell that is none, such as a pair."""
        return None if column < self.labels else number(self.rows[row][column])


def number(cell: str) -> float | None:
    """The number that a cell is, per cent included; None where it is none."""
    try:
        return float(cell.removesuffix("%"))
    except ValueError:
        return None


def read_tables() -> dict[str, ScoreTable]:
    """All published tables by name."""
    content = read_yaml_mapping(str(_FILE))
    return {name: _table(name, dict(values)) for name, values in content.items()}


def _table(name: str, values: dict[str, Any]) -> ScoreTable:
    columns, *rows = (line.split(" | ") for line in values.pop("rows").splitlines())
    assert all(len(row) == len(columns) for row in rows), name
    marked = {
        (number, column)
        for number, row in enumerate(rows)
        for column, cell in enumerate(row)
        if _is_marked(cell)
    }
    difference = values.pop("difference", None)
    return ScoreTable(
        name=name,
        columns=tuple(columns),
        rows=tuple(tuple(c[2:-2] if _is_marked(c) else c for c in row) for row in rows),
        marked=frozenset(marked),
        mean_without=tuple(values.pop("mean_without", ())),
        difference=difference and (difference["column"], difference["of"], difference["over"]),
        **values,
    )


def _is_marked(cell: str) -> bool:
    return len(cell) > 4 and cell.startswith("**") and cell.endswith("**")


def maxima(table: ScoreTable) -> frozenset[tuple[int, int]]:
    """(row, column) of the greatest number of each column, or row; of equal ones all.

    With ``best_within`` the rows of each value of that label have maxima of their own.
    """
    compared: dict[tuple[Any, ...], list[tuple[float, tuple[int, int]]]] = {}
    apart = table.columns.index(table.best_within) if table.best_within else None
    gain = table.difference[0] if table.difference else None
    for row in range(len(table.rows)):
        for column, name in enumerate(table.columns):
            score = table.score(row, column)
            if score is None or name == gain:
                continue
            of_row = table.rows[row][apart] if apart is not None else ""
            key = (row,) if table.best == "rows" else (column, of_row)
            compared.setdefault(key, []).append((score, (row, column)))
    return frozenset(
        place for scores in compared.values() for score, place in scores if score == max(scores)[0]
    )


def row_means(table: ScoreTable) -> list[float]:
    """The mean of each row's scores behind the column that is published as their mean."""
    assert table.mean, f"{table.name} has no column of means"
    first = table.columns.index(table.mean) + 1
    means = []
    for row in range(len(table.rows)):
        scores = [
            score
            for column, name in enumerate(table.columns[first:], start=first)
            if name not in table.mean_without and (score := table.score(row, column)) is not None
        ]
        means.append(sum(scores) / len(scores))
    return means


def with_means(table: ScoreTable) -> ScoreTable:
    """The table with the computed means in a column behind the published ones."""
    place = table.columns.index(table.mean) + 1
    rows = [
        (*row[:place], f"{mean:.2f}", *row[place:])
        for row, mean in zip(table.rows, row_means(table), strict=True)
    ]
    columns = (*table.columns[:place], "computed mean", *table.columns[place:])
    return replace(table, columns=columns, rows=tuple(rows), marked=frozenset(), mean="")


def row_differences(table: ScoreTable) -> list[float]:
    """The gain of each row, from the two columns that it is said to be the difference of."""
    assert table.difference is not None, f"{table.name} has no column of differences"
    _, of, over = (table.columns.index(name) for name in table.difference)
    gains = []
    for row in range(len(table.rows)):
        new, old = table.score(row, of), table.score(row, over)
        assert new is not None and old is not None
        gains.append(new - old)
    return gains


def merged(tables: Sequence[ScoreTable], name: str) -> ScoreTable:
    """One table of several with the same columns, each under its title; maxima are over all."""
    first = tables[0]
    assert all((table.columns, table.labels) == (first.columns, first.labels) for table in tables)
    rows: list[tuple[str, ...]] = []
    headings, marked = [], set()
    for table in tables:
        headings.append((len(rows), table.title))
        marked |= {(len(rows) + row, column) for row, column in table.marked}
        rows += table.rows
    return replace(
        first,
        name=name,
        title=f"{name}: {len(tables)} tables",
        rows=tuple(rows),
        headings=tuple(headings),
        marked=frozenset(marked),
    )


def groups(tables: dict[str, ScoreTable]) -> dict[str, ScoreTable]:
    """The merged views, by the name of the group."""
    names = dict.fromkeys(table.group for table in tables.values() if table.group)
    return {n: merged([t for t in tables.values() if t.group == n], n) for n in names}


def to_markdown(table: ScoreTable) -> str:
    """The table with its maxima in bold, its source and its note."""
    best, headings = maxima(table), dict(table.headings)
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "|" + "".join("---|" if c < table.labels else "---:|" for c in range(len(table.columns))),
    ]
    for row, cells in enumerate(table.rows):
        if row in headings:
            lines.append(f"| **{headings[row]}** |" + " |" * (len(cells) - 1))
        shown = (f"**{c}**" if (row, place) in best else c for place, c in enumerate(cells))
        lines.append("| " + " | ".join(shown) + " |")
    said = f"Published, in document {table.source}; not measured here."
    note = f"\n\nNote: {table.note}." if table.note else ""
    return f"### {table.title}\n\n" + "\n".join(lines) + f"\n\n{said}{note}\n"


def to_csv(tables: Sequence[ScoreTable]) -> str:
    """A line for every score: table, source, labels of its row, column, cell, whether the best."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(("table", "source", "row", "column", "value", "best"))
    for table in tables:
        best = maxima(table)
        for row, cells in enumerate(table.rows):
            labels = "; ".join(cells[: table.labels])
            for place in range(table.labels, len(cells)):
                line = (table.columns[place], cells[place], int((row, place) in best))
                writer.writerow((table.name, table.source, labels, *line))
    return output.getvalue()
