"""A report of made-up runs: what it tells, what it refuses, and that no data becomes markup."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from report_inputs import answer, line, start, write_jsonl
from tiny_model import tiny_config

from megatron_llava.config.cli import config_to_yaml
from megatron_llava.observe.report_page import Answers, read_run, report_page, spread
from megatron_llava.observe.run_log import settings_digest

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror='a'>\"'&"


class Page(HTMLParser):
    """Rows of tables by their first cell, tags, links and sources."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.sources, self.open, self.text = {}, [], [], [], ""
        self._cells = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [
            value for name, value in attributes if name in ("src", "href", "xlink:href")
        ]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self._cells = []
        if tag in ("td", "th"):
            self._cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.rows.setdefault(self._cells[0], []).append(self._cells[1:])

    def handle_startendtag(self, tag, attributes):
        assert tag in ("line", "path", "circle")

    def handle_data(self, data):
        self.text += data
        if self._cells and {"td", "th"} & {*self.open}:
            self._cells[-1] += data


def a_run(folder, *rows, **changes):
    """The folder of a run and its log."""
    config = tiny_config(
        **{"train_iters": 40, "lr": 3e-4, "log_file": str(folder / "log.jsonl"), **changes}
    )
    (folder / "run.yaml").write_text(config_to_yaml(config))
    write_jsonl(folder / "log.jsonl", list(rows))
    return settings_digest(config_to_yaml(config))


def test_a_report_tells_of_the_run(tmp_path):
    digest = a_run(tmp_path, start(0))
    later = {"torch": "2.14.0", "device": "CPU", "host": "second"}
    rows = [
        start(0, settings=digest),
        line(10, 3.0, **{"text samples": 20, "video samples": 10}),
        line(20, 2.0, **{"text samples": 25, "video samples": 5}),
        {"iteration": 20, "valid loss": 2.5},
        line(30, 9.0),
        start(20, settings=digest, environment=later),
        line(30, 1.5, **{"skipped steps": 1}),
        {"iteration": 30, "valid loss": 2.25},
    ]
    a_run(tmp_path, *rows)
    page = Page(report_page("A <run>", read_run(tmp_path, None)))
    assert page.rows["steps"] == [["30", "of 40 planned"]]
    assert page.rows["final lm loss"][0][0] == "1.5000"
    assert page.rows["final valid loss"][0][0] == "2.2500"
    assert page.rows["skipped steps"][0][0] == "1"
    assert page.rows["samples trained on"][0][0] == "180"
    assert page.rows["samples by kind"] == [["60", "text 75.0%, video 25.0%"]]
    assert page.rows["tokens trained on"][0][0] == "54,000"
    assert page.rows["time of the steps"][0][0] == "1 min 00 s"
    assert page.rows["median tokens/s"][0][0] == "900"
    assert "1 line of the log is replaced by what came after" in page.text
    assert "The log ends at step 30 of 40." in page.text
    assert page.rows["torch"] == [["2.14.0"]]
    # Only what differs between the starts is told of each.
    assert page.rows["from step"] == [["time", "torch", "host"]]
    assert page.rows["20"] == [["2026-01-02 03:04:05 UTC", "2.14.0", "second"]]


def test_every_setting_is_there_and_the_changed_ones_are_marked(tmp_path):
    from megatron_llava.config.run import all_fields

    a_run(tmp_path, line(10))
    run = read_run(tmp_path, None)
    page = Page(report_page("A run", run))
    shown = {name for name in page.rows if name.startswith("--")}
    assert shown == {spec.option for spec in all_fields().values()}
    marked = {name for name in shown if page.rows[name][0][0].endswith(" *")}
    assert marked == {
        spec.option for spec in all_fields().values() if run.config.get(spec.name) != spec.default
    }
    assert page.rows["--lr"][0][0] == "0.0003 *"


def test_no_data_becomes_markup(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        start(0, time=EVIL, environment={EVIL: EVIL}),
        start(0, time=EVIL, environment={EVIL: EVIL + "2"}),
        {**line(1), EVIL: 2.0, f"lr {EVIL}": 1.0, f"{EVIL} loss": None},
        line(2),
    ]
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    made = [answer(0, EVIL, EVIL + "\ud800", EVIL, id=EVIL, image="a.png", question=EVIL)]
    answers = write_jsonl(tmp_path / "answers.jsonl", made)
    asked = Answers(path=str(answers), blank=str(answers), image_folder=tmp_path)
    text = report_page(EVIL, read_run(None, log), asked)
    page = Page(text)
    assert page.tags.count("script") == 1 and page.tags.count("img") == 1
    assert all(re.match("data:|#", source) for source in page.sources)
    assert text.count("alert(1)") == text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 8
    data = text.encode("utf-8", "xmlcharrefreplace")
    assert b"&#55296;" in data


def test_a_log_alone_is_enough(tmp_path):
    log = write_jsonl(tmp_path / "log.jsonl", [line(1)])
    page = Page(report_page("A run", read_run(None, log)))
    assert "no folder of the run (--load) was named" in page.text
    assert "an older version wrote it" in page.text and "parameters" not in page.rows


def test_what_was_cut_short_is_told(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(line(1)) + '\n{"iter')
    page = Page(report_page("A run", read_run(None, tmp_path / "log.jsonl")))
    assert "Cut short in the log and left out: line 2." in page.text


def test_the_log_of_another_run_is_refused(tmp_path):
    digest = a_run(tmp_path, start(0), line(10))
    with pytest.raises(ValueError, match=r"log\.jsonl: the log of another run than .*run\.yaml"):
        read_run(tmp_path, None)
    # A resume may have had other settings, which were not saved yet.
    a_run(tmp_path, start(0, settings=digest), line(10), start(10), line(20))
    assert read_run(tmp_path, None).log.last_step == 20
    a_run(tmp_path, line(50))
    with pytest.raises(ValueError, match="it goes to step 50, --train-iters is 40; name the log"):
        read_run(tmp_path, None)


@pytest.mark.parametrize(
    ("root", "log", "words"),
    [
        (False, None, "a report needs --load (the folder of a run), --log-file, or both"),
        (False, "absent", "absent: cannot read the log: No such file"),
        (False, "empty", "empty: has no line of a training step"),
        (True, "empty", "empty: has no line of a training step"),
        (True, None, "run.yaml: the run had no --log-file"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, root, log, words):
    a_run(tmp_path, line(1), log_file=None)
    (tmp_path / "empty").write_text(json.dumps(start(0)) + "\n")
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_run(tmp_path if root else None, None if log is None else tmp_path / log)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"absent/run\.yaml: no such file"):
        read_run(tmp_path / "absent", None)


def test_samples_are_spread_over_the_store():
    assert [*spread(100, 4)] == [0, 25, 50, 75]
    assert [*spread(3, 8)] == [0, 1, 2] and [*spread(0, 4)] == []
