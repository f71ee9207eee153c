"""Logs with resumes, cut lines and values that are no numbers."""

import json
import re

import pytest
from report_inputs import line, start, write_jsonl

from megatron_llava.observe.run_log import read_log, total


def log_of(tmp_path, *rows):
    return read_log(write_jsonl(tmp_path / "log.jsonl", list(rows)))


def test_the_later_value_wins_and_lost_steps_are_gone(tmp_path):
    # A crash at 40, a resume from 20, and other intervals afterwards; no line tells of a start.
    before = [line(10), line(20), {"iteration": 20, "valid loss": 2.0}, line(30), line(40)]
    log = log_of(tmp_path, *before, {"iteration": 40, "valid loss": 1.0}, line(25, 9.0), line(35))
    assert [*log.steps] == [10, 20, 25, 35] and log.steps[25]["lm loss"] == 9.0
    assert log.columns["valid loss"] == {20: 2.0}
    assert log.replaced == 3 and (log.first_step, log.last_step) == (10, 35)


def test_a_start_takes_back_what_was_after_its_step(tmp_path):
    rows = [start(0), line(10), line(20), {"iteration": 20, "valid loss": 2.0}, line(30)]
    log = log_of(tmp_path, *rows, start(20), line(40))
    assert [*log.steps] == [10, 20, 40] and log.replaced == 1
    assert [s.iteration for s in log.starts] == [0, 20]
    assert log.columns["valid loss"] == {20: 2.0}
    again = log_of(tmp_path, *rows, start(0), line(5))
    assert [*again.steps] == [5] and "valid loss" not in again.columns and again.replaced == 4


def test_a_line_that_comes_twice_counts_once(tmp_path):
    held_out = {"iteration": 10, "valid loss": 2.0}
    log = log_of(tmp_path, line(10, 1.0), held_out, line(10, 4.0), {**held_out, "valid loss": 3.0})
    assert log.columns["lm loss"] == {10: 4.0} and log.columns["valid loss"] == {10: 3.0}
    assert log.replaced == 2


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    whole = "".join(json.dumps(row) + "\n" for row in (line(10), line(20)))
    path = tmp_path / "log.jsonl"
    path.write_text(whole + '{"iteration": 30, "lm l')
    log = read_log(path)
    assert [*log.steps] == [10, 20] and log.torn == (3,)
    # The resumed run ends that line and goes on below it.
    path.write_text(whole + '{"iteration": 30, "lm l\n' + json.dumps(start(20)) + "\n" + whole)
    log = read_log(path)
    assert log.torn == (3,) and [*log.steps] == [10, 20] and len(log.starts) == 1


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        ('{"iteration": 15, "lm', "log.jsonl:2: not a line of a log ("),
        ("[1]", "log.jsonl:2: not a line of a log (a list, not an object)"),
        ("[" * 100_000, "log.jsonl:2: not a line of a log (it is nested too deeply)"),
        ('{"iteration": "15"}', "log.jsonl:2: iteration is '15', not the number of a step"),
        ('{"iteration": -1}', "log.jsonl:2: iteration is -1, not"),
        ('{"iteration": true}', "log.jsonl:2: iteration is True, not"),
        ("\udcff\udcfe", "log.jsonl:2: not a line of a log ("),
    ],
)
def test_a_damaged_line_elsewhere_is_named(tmp_path, middle, words):
    text = json.dumps(line(10)) + "\n" + middle + "\n" + json.dumps(line(20)) + "\n"
    (tmp_path / "log.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_log(tmp_path / "log.jsonl")
    assert "\n" not in str(caught.value)


def test_what_is_no_finite_number_has_no_value(tmp_path):
    text = '{"iteration": 1, "lm loss": NaN, "a": null, "b": "x", "c": true, "d": 1e999, "e": 2}\n'
    (tmp_path / "log.jsonl").write_text(text)
    columns = read_log(tmp_path / "log.jsonl").columns
    assert columns == {"lm loss": {1: None}, "a": {1: None}, "d": {1: None}, "e": {1: 2.0}}
    # A whole number of a thousand digits is one that no axis can show.
    (tmp_path / "log.jsonl").write_text('{"iteration": 1, "lm loss": 1' + "0" * 1000 + "}\n")
    assert read_log(tmp_path / "log.jsonl").columns == {"lm loss": {1: None}}


def test_totals_begin_where_the_log_does(tmp_path):
    log = log_of(tmp_path, start(100), line(110), line(130))
    assert log.first_start == 100
    assert total(log.steps, "samples/s", log.first_start) == 3.0 * 2.0 * 30
    assert total(log.steps, before=log.first_start) == 60
    assert total({4: {"s/step": 2.0, "samples/s": None}}, "samples/s") == 0


def test_an_empty_log_is_one_without_steps(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    assert read_log(tmp_path / "log.jsonl").steps == {}
    with pytest.raises(ValueError, match="cannot read the log: No such file"):
        read_log(tmp_path / "absent.jsonl")
