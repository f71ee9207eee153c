"""Signals are held back, act where they are let through, and are never lost."""

import signal
import threading

import pytest

from megatron_llava.platform.held_signals import HeldSignals


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_a_held_signal_acts_where_it_is_let_through():
    reached = []
    with pytest.raises(KeyboardInterrupt), HeldSignals() as signals:
        interrupt()
        reached.append("held")
        with signals.through():
            reached.append("through")
    assert reached == ["held"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_acts_at_once_where_it_is_let_through():
    with HeldSignals() as signals:
        with pytest.raises(KeyboardInterrupt), signals.through():
            interrupt()
        interrupt()  # held again
        with pytest.raises(KeyboardInterrupt):
            signals.deliver()


def test_what_was_never_let_through_acts_at_the_end():
    with pytest.raises(KeyboardInterrupt), HeldSignals():
        interrupt()


def test_other_threads_hold_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run():
        with HeldSignals() as signals, signals.through():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
