"""Names imported inside functions exist: no other test may run the function."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "examples", "megatron_llava", "tools")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports_of(text: str) -> list[tuple[str, str]]:
    """(module, name) of every `from megatron_llava... import name`, at any depth."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron_llava")
        for alias in node.names
    ]


def lacking(text: str) -> list[str]:
    """Those that are not there."""
    found = []
    for module, name in imports_of(text):
        loaded = importlib.import_module(module)
        if not hasattr(loaded, name) and not is_module(f"{module}.{name}"):
            found.append(f"{module}.{name}")
    return found


def is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_imported_name_exists(folder):
    texts = {path: path.read_text() for path in FILES if path.is_relative_to(ROOT / folder)}
    assert {str(p.relative_to(ROOT)): lacking(t) for p, t in texts.items() if lacking(t)} == {}


def test_one_that_does_not_is_seen():
    inside = "def f():\n    from megatron_llava.inference.scorers import exact_match\n"
    assert lacking(inside) == ["megatron_llava.inference.scorers.exact_match"]
    assert lacking("from megatron_llava.inference import scorers") == []
