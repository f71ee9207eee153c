"""What the documents name exists: the pages they link to, files, and flags."""

import re
from pathlib import Path

import pytest
from command_line_cases import TOOLS

from megatron_llava.config.cli import build_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
MANUAL = [document for document in DOCUMENTS if document.parts[0] == "docs"]
# Of programs that are not Python's, or not ours: the quickstart's script, torchrun, nsys.
FOREIGN_FLAGS = {"--fresh", "--nproc-per-node", "--capture-range"}
FLAG = re.compile(r"(?<![\w-])--[a-z0-9][a-z0-9-]+(?![\w-]*\*)")


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def flags() -> set[str]:
    found = {flag for action in build_parser()._actions for flag in action.option_strings}
    folders = ("tools", "benchmarks", "examples", "tests", "megatron_llava")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        found |= set(re.findall(r"\"(--[a-z0-9-]+)\"", path.read_text()))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document):
    page = ROOT / document
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{document}: {link}"
        assert not anchor or anchor in _anchors(target), f"{document}: {link}"


# Those of examples also tell of other projects' flags.
@pytest.mark.parametrize("document", ["README.md", *MANUAL], ids=str)
def test_flags_exist(document, flags):
    unknown = set(FLAG.findall((ROOT / document).read_text())) - flags - FOREIGN_FLAGS
    assert not unknown, f"{document} names {sorted(unknown)}"


def test_every_tool_is_told_of():
    text = "".join((ROOT / document).read_text() for document in DOCUMENTS)
    assert [tool for tool in TOOLS.values() if Path(tool).name not in text] == []
