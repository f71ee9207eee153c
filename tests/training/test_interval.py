import time

from megatron_llava.training.interval import Interval


def test_a_pause_is_left_out_of_the_time():
    interval = Interval()
    began = time.perf_counter()
    with interval.paused():
        time.sleep(0.05)
    whole = time.perf_counter() - began
    assert time.perf_counter() - interval.started < whole
    assert interval.started >= began + 0.04


def test_a_pause_ends_with_an_error_too():
    interval = Interval()
    began = interval.started
    try:
        with interval.paused():
            time.sleep(0.02)
            raise KeyError
    except KeyError:
        pass
    assert interval.started >= began + 0.02
