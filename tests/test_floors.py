"""The floors of the package, read from its imports and assignments without running any of it.

Rooms import only from rooms listed before them; one file patches other libraries; the environment
is read in one room; the optional extras are named in one file each.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import megatron_llava

PACKAGE = Path(megatron_llava.__file__).parent
NAME = PACKAGE.name
ROOMS = (
    "config",
    "platform",
    "text",
    "vision",
    "data",
    "curation",
    "ops",
    "peft",
    "models",
    "parallel",
    "convert",
    "training",
    "inference",
    "observe",
    "plan",
    "recipes",
    "train",
)
EXTRAS = (
    "transformer_engine",
    "flash_attn",
    "wandb",
    "imagehash",
    "datasketch",
    "ahocorasick",
    "bitsandbytes",
)
PATCHES = Path("platform/cpu.py")
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"), str(path))


def room_of(path: Path) -> str | None:
    """The room of a file; None for the package's own ``__init__``."""
    return None if path == Path("__init__.py") else path.with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, ``from a import b`` as ``a.b``, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in (
            "__import__",
            "import_module",
            "importlib.import_module",
        ):
            name = node.args[0]
            yield (name.value if isinstance(name, ast.Constant) else "?"), node.lineno


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: everything outside of functions."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            pending.extend(ast.iter_child_nodes(node))


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of names and attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def root(node: ast.AST) -> str:
    """The first name of a chain of attributes, subscripts and calls."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rooms_imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for module, line in imports(tree):
        if is_within(module, NAME):
            parts = module.split(".")
            yield (parts[1] if len(parts) > 1 else ""), line


def foreign_names(tree: ast.AST) -> set[str]:
    """Names that imports of other libraries bind in this file."""
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [(alias.name, alias.asname) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(f"{node.module}.{a.name}", a.asname or a.name) for a in node.names]
        else:
            continue
        for module, name in modules:
            if not is_within(module, NAME):
                bound.add(name or module.split(".")[0])
    return bound


def is_setattr(node: ast.AST) -> bool:
    """setattr or delattr on anything but the object itself."""
    is_call = isinstance(node, ast.Call) and dotted(node.func) in ("setattr", "delattr")
    return is_call and dotted(node.args[0]) != "self"


def patches(tree: ast.AST) -> list[str]:
    """Assignments to, deletions of and setattr on attributes of other libraries."""
    foreign = foreign_names(tree)
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = list(node.targets)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif is_setattr(node):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        for target in (inner for outer in targets for inner in ast.walk(outer)):
            is_stored = isinstance(target, (ast.Attribute, ast.Subscript)) and not isinstance(
                target.ctx, ast.Load
            )
            if is_stored and root(target) in foreign:
                found.append(f"line {node.lineno}: {ast.unparse(target)}")
    return found


def reads_of_environment(tree: ast.AST) -> list[str]:
    found = [
        f"line {node.lineno}: {dotted(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and root(node) == "os"
        and node.attr in ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
    ]
    return found + [
        f"line {line}: {module}"
        for module, line in imports(tree)
        if module in ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv")
    ]


def test_every_file_is_in_a_known_room():
    unknown = {room_of(path) for path in FILES} - {None, *ROOMS}
    assert not unknown, f"rooms without a floor: {unknown}"


def test_a_room_imports_only_from_lower_floors():
    problems = []
    for path in FILES:
        room = room_of(path)
        floor = -1 if room is None else ROOMS.index(room)
        for target, line in rooms_imported(parse(path)):
            if target not in ROOMS or (target != room and ROOMS.index(target) > floor):
                problems.append(f"{path}:{line}: {room} imports {target or NAME}")
    assert not problems, "\n".join(problems)


def test_text_and_vision_know_nothing_of_processes():
    problems = [
        f"{path}:{line}: {module}"
        for path in FILES
        if room_of(path) in ("text", "vision")
        for module, line in imports(parse(path))
        if is_within(module, "megatron") or is_within(module, "torch.distributed")
    ]
    assert not problems, "\n".join(problems)


def test_curation_stands_beside_training():
    """It is used by its own tools only, and knows nothing of the device."""
    allowed = {"config", "text", "vision", "data", "curation"}
    found = [(p, target, n) for p in FILES for target, n in rooms_imported(parse(p))]
    problems = [
        f"{path}:{line}: {room_of(path)} imports {target}"
        for path, target, line in found
        if (room_of(path) == "curation" and target not in allowed)
        or (target == "curation" and room_of(path) != "curation")
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_imported_in_one_file_and_never_at_import(extra):
    files = [p for p in FILES if any(is_within(m, extra) for m, _ in imports(parse(p)))]
    assert len(files) <= 1, f"{extra} is imported in {[str(path) for path in files]}"
    for path in files:
        early = [line for node in run_at_import(parse(path)) for _, line in imports_of(node, extra)]
        assert not early, f"{path}:{early[0]}: {extra} is imported with the package"


def imports_of(node: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Imports of ``package`` by this node itself."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((m, line) for m, line in imports(node) if is_within(m, package))


def test_the_environment_is_read_by_the_platform_only():
    found = {path: reads_of_environment(parse(path)) for path in FILES}
    assert found[Path("platform/device.py")], "this test no longer sees the reads that there are"
    problems = [f"{p}: {reads}" for p, reads in found.items() if reads and room_of(p) != "platform"]
    assert not problems, "\n".join(problems)


def test_other_libraries_are_patched_by_one_file_only():
    found = {path: patches(parse(path)) for path in FILES}
    assert found.pop(PATCHES), "this test no longer sees the patches that there are"
    problems = [f"{path}: {where}" for path, where in found.items() if where]
    assert not problems, "\n".join(problems)


def tree_of(code: str) -> ast.Module:
    return ast.parse(textwrap.dedent(code))


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.compile = None",
        "import torch\ntorch.cuda.synchronize = print",
        "import torch.nn as nn\ndef f():\n    nn.Linear.forward = None",
        "from megatron.core import parallel_state\nparallel_state.x = 1",
        "from megatron.core import parallel_state\ndel parallel_state.x",
        "import megatron.core.utils\nmegatron.core.utils.REGISTRY['a'] = 1",
        "import torch\na, torch.b = 1, 2",
        "import torch\nsetattr(torch, 'compile', None)",
        "import torch\nalias = torch\nsetattr(alias, 'compile', None)",
    ],
)
def test_a_patch_is_seen(code):
    assert patches(tree_of(code))


@pytest.mark.parametrize(
    "code",
    [
        "import torch\nx = torch.ones(2)\nx.requires_grad = True",
        "import torch\nclass A:\n    def f(self):\n        self.torch = torch.ones(2)",
        "import torch\nx = {}\nx[torch.float32] = 1",
    ],
)
def test_what_is_no_patch_is_not_seen(code):
    assert not patches(tree_of(code))


def test_imports_are_seen_wherever_they_stand():
    tree = tree_of("""
        import a.b as c
        from d import e, f
        def g():
            from h.i import j
            importlib.import_module("k")
        if TYPE_CHECKING:
            import m
    """)
    assert {name for name, _ in imports(tree)} == {"a.b", "d.e", "d.f", "h.i.j", "k", "m"}
    early = {m for node in run_at_import(tree) for p in "adhm" for m, _ in imports_of(node, p)}
    assert early == {"a.b", "d.e", "d.f", "m"}


@pytest.mark.parametrize(
    "code", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"]
)
def test_reading_the_environment_is_seen(code):
    assert reads_of_environment(tree_of(code))
