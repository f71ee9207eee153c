"""The README's table of features is that of the tests, and has every row that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from feature_table import (
    BEGIN,
    END,
    FEATURES,
    README,
    SECTIONS,
    TESTS,
    Feature,
    Proof,
    complaints,
    read_features,
    read_proofs,
    state,
    table,
    with_table,
    written_anew,
)

ASKED_FOR = {"A": 22, "B": 13, "C": 14, "D": 20, "E": 11, "F": 2}


def test_the_readme_is_current():
    assert README.read_text() == written_anew(), "run python tests/feature_table.py --write"


def test_every_row_is_listed():
    rows = [f"{letter}{n}" for letter, last in ASKED_FOR.items() for n in range(1, last + 1)]
    assert list(read_features(FEATURES)) == rows and list(SECTIONS) == list(ASKED_FOR)


def test_marks_and_rows_fit_together():
    assert complaints(read_features(FEATURES), read_proofs(TESTS)) == []


MODULE = """
import pytest
pytestmark = [pytest.mark.gpu, pytest.mark.proves("A1")]

def helper():
    pass

@pytest.mark.parametrize("x", [1])
@pytest.mark.proves("A2", "A3")
def test_one(x):
    pass
"""
CLASSES = """
import pytest

@pytest.mark.proves("B1")
class TestIt:
    def test_two(self):
        pass

    @pytest.mark.gpu
    @pytest.mark.proves("B2")
    def test_three(self):
        pass

def test_four():
    assert "mark.proves('A1')"
"""


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    return folder


def test_marks_are_read_from_functions_classes_and_modules(tmp_path):
    found = read_proofs(written(tmp_path, one=MODULE, two=CLASSES))
    assert [(proof.id, proof.test, proof.on_gpu) for proof in found] == [
        ("A1", "test_one", True),
        ("A2", "test_one", True),
        ("A3", "test_one", True),
        ("B1", "test_two", False),
        ("B1", "test_three", True),
        ("B2", "test_three", True),
    ]


@pytest.mark.parametrize(
    ("decorated", "message"),
    [
        ("@pytest.mark.proves\ndef test_x(): pass", "test_a.py:1: proves takes ids"),
        ("@pytest.mark.proves(name)\ndef test_x(): pass", "each written out in quotes"),
        ("@pytest.mark.proves(*names)\ndef test_x(): pass", "each written out in quotes"),
        ("@pytest.mark.skip\n@pytest.mark.proves('A1')\ndef test_x(): pass", "not have to pass"),
        ("@pytest.mark.proves('A1')\ndef helper(): pass", "helper is marked .* is no test"),
    ],
)
def test_marks_that_cannot_be_read(tmp_path, decorated, message):
    with pytest.raises(ValueError, match=message):
        read_proofs(written(tmp_path, a=decorated))


def row(**texts: str) -> Feature:
    return Feature(id="A1", what="it", seeds="001", **texts)


def proof(on_gpu: bool, name: str = "A1") -> Proof:
    return Proof(id=name, file="vision/test_x.py", test="test_y", on_gpu=on_gpu)


CPU, GPU = proof(False), proof(True)


@pytest.mark.parametrize(
    ("texts", "proofs", "said"),
    [
        ({"why": "no code"}, [], "not yet: no code"),
        ({}, [CPU], "done"),
        ({}, [GPU, CPU], "done"),
        ({}, [GPU], "needs a GPU"),
        ({"gpu": "FP8"}, [GPU], "needs a GPU: FP8"),
        ({"lacks": "B"}, [CPU], "done; but lacks: B"),
        ({"lacks": "B", "gpu": "C"}, [CPU], "done; but lacks: B; needs a GPU: C"),
    ],
)
def test_the_state_follows_from_the_proofs(texts, proofs, said):
    assert state(row(**texts), proofs) == said
    assert complaints({"A1": row(**texts)}, proofs) == []
    assert f"| A1 | it | 001 | {said} |" in table({"A1": row(**texts)}, proofs)


@pytest.mark.parametrize(
    ("texts", "proofs", "said"),
    [
        ({}, [], "A1: no test proves it: say 'why'"),
        ({"why": "no code"}, [CPU], "A1: tests prove it"),
        ({"lacks": "B", "why": "no code"}, [], "'lacks' is for rows proved in part"),
        ({}, [CPU, proof(False, "Z9")], "test_y proves Z9, which features.yaml lacks"),
    ],
)
def test_what_does_not_fit_is_said(texts, proofs, said):
    (complaint,) = complaints({"A1": row(**texts)}, proofs)
    assert said in complaint


def test_the_table_takes_the_place_of_the_old_one():
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    for broken in ("a", f"{BEGIN}", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"):
        with pytest.raises(ValueError, match="once each"):
            with_table(broken, "new")
