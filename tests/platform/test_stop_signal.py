"""SIGTERM is remembered; a second one ends the process, but not the echo of the first."""

import signal
from types import SimpleNamespace

import pytest
from own_process import run_python

from megatron_llava.platform import stop_signal
from megatron_llava.platform.stop_signal import SECONDS_OF_ECHO, StopSignal


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the signal handler believes in."""
    times = [100.0]
    monkeypatch.setattr(stop_signal, "time", SimpleNamespace(monotonic=lambda: times[0]))
    return times


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGTERM)
    listener = StopSignal()
    listener.listen()
    yield listener
    signal.signal(signal.SIGTERM, before)


def test_a_signal_is_remembered(listening):
    assert not listening.received
    signal.raise_signal(signal.SIGTERM)
    assert listening.received


def test_slurm_and_torchrun_signal_at_once_and_nothing_ends(listening, clock):
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
        clock[0] += SECONDS_OF_ECHO / 3
    assert listening.received


def test_a_later_signal_ends_the_process():
    code = f"""
        import os, signal, sys, time
        from megatron_llava.platform import stop_signal

        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            sys.exit()
        stop_signal.StopSignal().listen()
        signal.raise_signal(signal.SIGTERM)
        later = time.monotonic() + {SECONDS_OF_ECHO} + 1
        stop_signal.time.monotonic = lambda: later
        signal.raise_signal(signal.SIGTERM)
    """
    assert run_python(code) == f"{-signal.SIGTERM}\n"
