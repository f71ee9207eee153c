"""Records in processes: an interrupt amid the pool's own locks ends the work all the same."""

import subprocess
import sys

import pytest

# Signals itself when the main thread has just taken a lock of the pool, the NUMBERth time. Raised
# there, the exception leaves the lock taken.
PROGRAM = """
import signal, sys
from contextlib import closing
from megatron_llava.config.tool_exit import run_tool
from megatron_llava.data.record_processes import in_processes

def same(chunk):
    return chunk

def make():
    return same

times = 0

def trace(frame, event, arg):
    global times
    if event == "call":
        name = frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name
        return trace if name == ("threading.py", "__enter__") else None
    if event == "return":
        times += 1
        if times == NUMBER:
            print("interrupting", file=sys.stderr, flush=True)
            signal.raise_signal(signal.SIGINT)
    return trace

def work():
    with closing(in_processes(range(10**9), make, 2)) as results:
        assert next(results) == 0
        sys.settrace(trace)
        for _ in results:
            pass

run_tool(work)
"""


@pytest.mark.parametrize("number", [1, 2, 3, 10, 11, 12, 13])
def test_an_interrupt_amid_the_pool_ends_the_work(number):
    program = PROGRAM.replace("NUMBER", str(number))
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1
    assert said == "interrupting\ninterrupted\n"
