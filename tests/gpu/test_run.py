"""The script that runs what waits for a GPU leaves nothing out; needs none itself."""

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_needs_a_gpu_is_in_a_step():
    script = (TESTS / "gpu/run.sh").read_text()
    named = set(re.findall(r"tests/(\S+\.py)", script))
    marked = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("test_*.py")
        if re.search(r"^(    |@)pytest\.mark\.gpu", path.read_text(), re.MULTILINE)
    }
    assert named == marked


def test_the_steps_of_one_file_share_it_out():
    """Each -k chooses some of its tests; together they are all of them, and none twice."""
    script = (TESTS / "gpu/run.sh").read_text()
    steps = re.findall(r'test_cuda\.py(?: \\\n)? *-k "([^"]+)"', script)
    assert len(steps) == 3
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "gpu"]
    done = subprocess.run(
        [*command, TESTS / "gpu/test_cuda.py"], capture_output=True, text=True, cwd=TESTS.parent
    )
    names = [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]
    assert names
    in_name = [re.sub(r"\b(?!or\b|and\b|not\b)\w+", r"('\g<0>' in name)", words) for words in steps]
    for name in names:
        assert sum(eval(text, {"name": name}) for text in in_name) == 1, (name, steps)
