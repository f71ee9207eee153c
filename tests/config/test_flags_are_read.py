"""A flag that nothing reads does not exist.

A field counts as read where code outside ``config/`` reads an attribute of its name, or uses a
method or property of ``config/`` that reads it (``config.num_microbatches(...)``). Rules, printing
and declarations in ``config/`` alone do not make a flag do anything.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import megatron_llava
from megatron_llava.config.run import all_fields, group_classes

PACKAGE = Path(megatron_llava.__file__).parent
CONFIG = PACKAGE / "config"

# Fields whose reader is still to be written. The list shrinks to nothing: a name in it that is
# read fails the test as well.
NOT_YET_READ: list[str] = []


def imported_names(tree: ast.AST) -> set[str]:
    """Names that imports bind: ``torch.save`` is no reading of the field ``save``."""
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }


def attributes_read(tree: ast.AST, imported: set[str]) -> Iterator[tuple[str, bool]]:
    """(name, whether it is called) of every attribute read from something not imported."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            root: ast.AST = node
            while isinstance(root, (ast.Attribute, ast.Subscript, ast.Call)):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and root.id in imported:
                continue
            # config.optimizer is a group; config.optimizer.optimizer is the field.
            if node.attr not in group_classes() or last_name(node.value) == node.attr:
                yield node.attr, id(node) in called


def last_name(node: ast.AST) -> str | None:
    """``c`` of ``a.b.c`` or of ``c``."""
    return getattr(node, "attr", getattr(node, "id", None))


def helpers_of_config() -> dict[str, set[str]]:
    """Methods and properties of classes in ``config/``, with the attributes that they read."""
    helpers: dict[str, set[str]] = {}
    for path in CONFIG.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for method in (node for node in cls.body if isinstance(node, ast.FunctionDef)):
                read = {name for name, _ in attributes_read(method, imported_names(tree))}
                helpers.setdefault(method.name, set()).update(read)
    return helpers


def names_read(package: Path) -> set[str]:
    """Every attribute name that the package reads outside ``config/``, through helpers too."""
    helpers = helpers_of_config()
    found: set[str] = set()
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "config"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # No field holds a function, so a called attribute is a field only by coincidence.
        for name, called in attributes_read(tree, imported_names(tree)):
            if not called or name in helpers:
                found.add(name)
    pending = list(found & helpers.keys())
    while pending:
        new = helpers[pending.pop()] - found
        found |= new
        pending += new & helpers.keys()
    return found


def test_every_flag_is_read():
    unread = all_fields().keys() - names_read(PACKAGE) - set(NOT_YET_READ)
    assert not unread, f"nothing reads {sorted(unread)}"


def test_the_list_of_unread_flags_holds_only_unread_flags():
    assert set(NOT_YET_READ) <= all_fields().keys()
    read = sorted(set(NOT_YET_READ) & names_read(PACKAGE))
    assert read == [], f"these are read now: take {read} out of NOT_YET_READ"


def test_what_counts_as_reading(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "rules.py").write_text("config.data.packing_window")
    (tmp_path / "room.py").write_text(
        "import torch\n"
        "from numpy import random\n"
        "torch.save(random.seed)\n"
        "writer.load(path)\n"
        "config.training.train_iters = 3\n"
        "config.num_microbatches(8)\n"
        "print(config.recompute.granularity, config.optimizer.lr)\n"
    )
    fields = names_read(tmp_path) & all_fields().keys()
    assert fields == {
        "lr",
        "recompute_granularity",
        "recompute_activations",
        "global_batch_size",
        "micro_batch_size",
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
    }
