import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_llava.platform.processes import has_ended, this_process

ME = this_process()
pytestmark = pytest.mark.skipif(not ME.namespace, reason="needs Linux's /proc")


def test_this_process_runs():
    assert ME.pid == os.getpid() and not has_ended(ME, seen_from=ME)


def test_a_zombie_has_ended():
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        # It is one as soon as its exit can be waited for without taking it.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        assert state[0] == "Z"
        assert has_ended(replace(ME, pid=child, started=state[19]), seen_from=ME)
    finally:
        os.waitpid(child, 0)


def test_a_number_that_is_not_used_or_used_again_has_ended():
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        text=True,
        capture_output=True,
        check=True,
    )
    assert has_ended(replace(ME, pid=int(done.stdout)), seen_from=ME)
    assert has_ended(replace(ME, started="1"), seen_from=ME)


@pytest.mark.parametrize("namespace", ["", "another boot"])
def test_nothing_is_known_of_another_machine(namespace):
    assert not has_ended(replace(ME, pid=2**22, namespace=namespace), seen_from=ME)
    assert not has_ended(replace(ME, pid=2**22), seen_from=replace(ME, namespace=namespace))
