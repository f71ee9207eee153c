"""The README's table of features: what was asked for, and the tests that prove it.

    python tests/feature_table.py --write    # after a change of marks or of tests/features.yaml
    python tests/feature_table.py --check

A test says with ``@pytest.mark.proves("A1", "B2")`` which rows of ``features.yaml`` it proves; a
class and a module's ``pytestmark`` may say it too. Marks are read from the source, nothing is
imported.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

TESTS = Path(__file__).parent
FEATURES = TESTS / "features.yaml"
README = TESTS.parent / "README.md"
BEGIN, END = "<!-- features: written by tests/feature_table.py -->", "<!-- end of features -->"
SECTIONS = {
    "A": "Images, AnyRes, visual tokens",
    "B": "Models",
    "C": "Text and data",
    "D": "Training",
    "E": "Inference, evaluation, reports",
    "F": "Roadmap",
}
_TEXTS = {"what", "seeds", "lacks", "gpu", "why"}


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A row of features.yaml."""

    id: str
    what: str
    seeds: str
    """The documents that ask for it."""

    lacks: str = ""
    """What of it is not there, where tests prove the rest."""

    gpu: str = ""
    """What of it waits for a GPU."""

    why: str = ""
    """Where nothing proves it: what is missing."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A test, and one of the rows that it is marked with."""

    id: str
    file: str
    """Below tests/."""

    test: str
    on_gpu: bool


def read_features(path: Path) -> dict[str, Feature]:
    """The rows by id, in the order of the file.

    Raises:
        ValueError: a key that is none, or a row without its text.
    """
    rows = {}
    for name, texts in yaml.safe_load(path.read_text()).items():
        unknown = texts.keys() - _TEXTS
        if unknown or not {"what", "seeds"} <= texts.keys():
            raise ValueError(f"{path.name}: {name}: expected what, seeds and maybe lacks, gpu, why")
        rows[name] = Feature(id=name, **{key: str(text).strip() for key, text in texts.items()})
    return rows


def read_proofs(folder: Path) -> list[Proof]:
    """All marks of the tests below a folder.

    Raises:
        ValueError: a mark whose ids are not written out, or on what is no test.
    """
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text()
        if "mark.proves" in text:
            name = path.relative_to(folder).as_posix()
            found += list(_proofs_of(ast.parse(text, name), name))
    return found


def _proofs_of(tree: ast.Module, file: str) -> Iterator[Proof]:
    of_module: list[ast.expr] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        ):
            value = node.value
            of_module += value.elts if isinstance(value, ast.List) else [value]
    for node, inherited in _functions(tree.body, of_module):
        marks = [*inherited, *node.decorator_list]
        ids = [name for mark in marks for name in _ids(mark, file)]
        if not node.name.startswith("test_"):
            if any(_ids(mark, file) for mark in node.decorator_list):
                raise ValueError(f"{file}: {node.name} is marked with rows, and is no test")
            continue
        if ids and any(_name(mark) in ("skip", "xfail") for mark in marks):
            raise ValueError(f"{file}: {node.name} is marked with rows, and does not have to pass")
        on_gpu = any(_name(mark) == "gpu" for mark in marks)
        for name in ids:
            yield Proof(id=name, file=file, test=node.name, on_gpu=on_gpu)


def _functions(
    body: list[ast.stmt], inherited: list[ast.expr]
) -> Iterator[tuple[ast.FunctionDef, list[ast.expr]]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node, inherited
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, [*inherited, *node.decorator_list])


def _name(mark: ast.expr) -> str:
    """``gpu`` of pytest.mark.gpu and of pytest.mark.gpu(...); empty where it is no mark."""
    if isinstance(mark, ast.Call):
        mark = mark.func
    return mark.attr if isinstance(mark, ast.Attribute) else ""


def _ids(mark: ast.expr, file: str) -> list[str]:
    if _name(mark) != "proves":
        return []
    arguments = mark.args if isinstance(mark, ast.Call) else []
    ids = [node.value for node in arguments if isinstance(node, ast.Constant)]
    if not ids or len(ids) != len(arguments) or not all(isinstance(name, str) for name in ids):
        raise ValueError(f"{file}:{mark.lineno}: proves takes ids, each written out in quotes")
    return ids


def complaints(features: dict[str, Feature], proofs: list[Proof]) -> list[str]:
    """What of the marks and the rows does not fit together; one line each."""
    said = [
        f"tests/{proof.file}: {proof.test} proves {proof.id}, which features.yaml lacks"
        for proof in proofs
        if proof.id not in features
    ]
    proven = {proof.id for proof in proofs}
    for row in features.values():
        if row.id in proven and row.why:
            said.append(f"{row.id}: tests prove it, so it has no 'why': say in 'lacks' what lacks")
        if row.id not in proven and not row.why:
            said.append(f"{row.id}: no test proves it: say 'why'")
        if row.id not in proven and row.lacks:
            said.append(f"{row.id}: no test proves it: 'lacks' is for rows proved in part")
    return said


def state(row: Feature, proofs: list[Proof]) -> str:
    """The state of a row, as its proofs (those of this row) and its texts give it."""
    if not proofs:
        return f"not yet: {row.why}"
    if all(proof.on_gpu for proof in proofs):
        return f"needs a GPU: {row.gpu}" if row.gpu else "needs a GPU"
    words = ["done"]
    words += [f"but lacks: {row.lacks}"] if row.lacks else []
    words += [f"needs a GPU: {row.gpu}"] if row.gpu else []
    return "; ".join(words)


def table(features: dict[str, Feature], proofs: list[Proof]) -> str:
    """The table as Markdown, with a line of numbers above it."""
    lines, states = [], []
    section = ""
    for row in features.values():
        if row.id[0] != section:
            section = row.id[0]
            lines.append(f"| | **{SECTIONS[section]}** | | | |")
        own = [proof for proof in proofs if proof.id == row.id]
        said = state(row, own)
        states.append(said)
        files = dict.fromkeys(proof.file.removesuffix(".py") for proof in own)
        where = ", ".join(f"`{name}`" for name in files)
        lines.append(f"| {row.id} | {row.what} | {row.seeds} | {said} | {where} |")
    counts = {
        "done": sum(said == "done" for said in states),
        "done but for a part that is named": sum(said.startswith("done;") for said in states),
        "waiting for a GPU": sum(said.startswith("needs a GPU") for said in states),
        "not yet": sum(said.startswith("not yet") for said in states),
    }
    numbers = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    head = "| | what | seed | state | proved by, below `tests/` |\n|---|---|---|---|---|"
    return (
        f"<details>\n<summary>{len(states)} rows: {numbers}</summary>\n\n"
        + "\n".join([head, *lines])
        + "\n\n</details>"
    )


def with_table(readme: str, text: str) -> str:
    """A README with another table between its two marks.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end or BEGIN in old + after or END in before + after:
        raise ValueError(f"README.md: expected {BEGIN!r} and {END!r} once each")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def written_anew() -> str:
    """The README as it has to be.

    Raises:
        ValueError: marks and rows do not fit together.
    """
    features, proofs = read_features(FEATURES), read_proofs(TESTS)
    said = complaints(features, proofs)
    if said:
        raise ValueError("\n".join(said))
    return with_table(README.read_text(), table(features, proofs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the table into README.md")
    what.add_argument("--check", action="store_true", help="fail where README.md has another one")
    arguments = parser.parse_args()
    try:
        text = written_anew()
    except ValueError as error:
        sys.exit(str(error))
    if arguments.write:
        README.write_text(text)
    elif text != README.read_text():
        sys.exit("README.md: its feature table is old: run python tests/feature_table.py --write")


if __name__ == "__main__":
    main()
