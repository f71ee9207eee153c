"""The log line, JSONL, TensorBoard and the progress bar."""

import io
import json
import math
import os
import re
import time
from datetime import datetime

import psutil
import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_platform")

VALUES = {"lm loss": 2.34567, "lr": 1e-5, "lr x0.2": 2e-6, "grad norm": 1.5}
KINDS = {
    "text samples": 30,
    "single-image samples": 40,
    "multi-image samples": 8,
    "video samples": 2,
}
QUANTITIES = [
    *VALUES,
    "tokens/s",
    "images/s",
    "samples/s",
    *KINDS,
    "fill %",
    "data wait %",
    "TFLOP/s/rank",
    "memory GiB",
    "s/step",
    "eta s",
]
CPU = torch.device("cpu")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def make_reporter():
    from megatron_llava.observe.metrics import Reporter

    made = []

    def make(**changes):
        options = {
            "active": True,
            "train_iters": 110,
            "log_file": None,
            "tensorboard_dir": None,
            "progress_bar": True,
            "stream": io.StringIO(),
        }
        made.append(Reporter(**{**options, **changes}))
        return made[-1]

    yield make
    for reporter in made:
        reporter.close()


def interval(seconds=20.0, **changes):
    """Ten steps that took so many seconds until now."""
    from megatron_llava.training.interval import Interval

    counts = {
        "steps": 10,
        "tokens": 9000,
        "padded_tokens": 10000,
        "samples": 80,
        "images": 60,
        "kinds": tuple(KINDS.values()),
        "data_seconds": 1.0,
        "useful_flops": 20 * 10**12,
        "recomputed_flops": 5 * 10**12,
    }
    return Interval(**{**counts, **changes}, started=time.perf_counter() - seconds)


def line_of(reporter):
    text = reporter.stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    return text.rstrip("\n")


def test_the_line_holds_every_quantity(make_reporter):
    reporter = make_reporter()
    reporter.training(10, VALUES, interval(), CPU)
    memory = psutil.Process().memory_info().rss / 2**30
    shown = line_of(reporter).split(" | ")
    step, loss, lr, tower, norm, tokens, images, fill, wait, speed, gib, seconds, eta = shown
    assert step == "step 10/110"
    assert (loss, lr, tower) == ("lm loss 2.346", "lr 1.00e-05", "lr x0.2 2.00e-06")
    assert norm == "grad norm 1.5"
    assert re.fullmatch(r"(449\.\d|450) tokens/s", tokens)
    assert re.fullmatch(r"(2\.99\d|3) images/s", images)
    assert fill == "fill 90.0 %"
    assert wait == "data wait 5.0 %"
    assert re.fullmatch(r"(0\.99\d*|1) TFLOP/s/rank", speed)
    assert float(gib.removesuffix(" GiB")) == pytest.approx(memory, rel=0.05)
    assert re.fullmatch(r"2\.00\d s/step", seconds)
    # A hundred steps of two seconds are left.
    assert eta == "eta 0:03:20"


def test_shares_of_the_peak(make_reporter, tmp_path):
    """Two ranks of 4 * 10^12 FLOPs per second: 1 of 8 is used for the model, 1.25 in all."""
    path = tmp_path / "run.jsonl"
    reporter = make_reporter(log_file=str(path), ranks=2, peak_flops=4e12)
    reporter.training(10, VALUES, interval(), CPU)
    record = json.loads(path.read_text())
    assert record["TFLOP/s/rank"] == pytest.approx(0.5, rel=1e-3)
    assert record["MFU %"] == pytest.approx(12.5, rel=1e-3)
    assert record["HFU %"] == pytest.approx(15.625, rel=1e-3)
    assert " TFLOP/s/rank | MFU 12.5 % | HFU 15.6 % | " in line_of(reporter)


def test_the_peak_is_given_or_that_of_a_known_gpu(monkeypatch):
    from megatron_llava.observe.metrics import peak_flops

    assert peak_flops(CPU, None) is None
    assert peak_flops(CPU, 0.5) == 5e11
    cuda = torch.device("cuda", 1)
    name = {cuda: "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr("torch.cuda.get_device_name", name.get)
    assert peak_flops(cuda, None) == 989.4e12
    assert peak_flops(cuda, 100.0) == 1e14
    name[cuda] = "NVIDIA GeForce RTX 4090 Laptop GPU"
    assert peak_flops(cuda, None) is None


@pytest.mark.proves("C8", "E11")
def test_jsonl_has_a_record_per_line_with_every_quantity(make_reporter, tmp_path):
    path = tmp_path / "new" / "run.jsonl"
    reporter = make_reporter(log_file=str(path))
    reporter.training(10, VALUES, interval(), CPU)
    # The line must be there while the run goes on.
    first = json.loads(path.read_text())
    reporter.validation(10, 1.25, 5000, 3.0)
    reporter.training(20, VALUES, interval(), CPU)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0] == first
    assert [set(record) for record in records] == [
        {"iteration", *QUANTITIES},
        {"iteration", "valid loss"},
        {"iteration", *QUANTITIES},
    ]
    assert [record["iteration"] for record in records] == [10, 10, 20]
    assert all(math.isfinite(value) for record in records for value in record.values())
    # Not rounded as in the line.
    assert {name: first[name] for name in VALUES} == VALUES
    assert first["tokens/s"] == pytest.approx(450, rel=0.01)
    assert first["samples/s"] == pytest.approx(4, rel=0.01)
    assert {name: first[name] for name in KINDS} == KINDS
    assert first["fill %"] == 90.0
    assert first["eta s"] == pytest.approx(200, rel=0.01)
    assert records[1]["valid loss"] == 1.25


def test_details_go_into_the_record_and_numbers_to_tensorboard(make_reporter, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, events = tmp_path / "run.jsonl", tmp_path / "events"
    reporter = make_reporter(log_file=str(path), tensorboard_dir=str(events))
    details = {"slowest rank": 1, "slowest host": "a", "time data %": 2.5}
    reporter.training(10, VALUES, interval(details=details), CPU)
    reporter.close()
    record = json.loads(path.read_text())
    assert {name: record[name] for name in details} == details
    found = EventAccumulator(str(events))
    found.Reload()
    names = set(found.Tags()["scalars"])
    assert {"train/slowest rank", "train/time data %"} <= names
    assert found.Scalars("train/video samples")[0].value == 2
    assert "train/slowest host" not in names


def test_a_resumed_run_appends_to_its_file(make_reporter, tmp_path):
    path = tmp_path / "run.jsonl"
    for iteration in (10, 20):
        reporter = make_reporter(log_file=str(path))
        reporter.training(iteration, VALUES, interval(), CPU)
        reporter.close()
    assert [json.loads(line)["iteration"] for line in path.open()] == [10, 20]


def test_a_start_tells_where_and_with_what_settings(make_reporter, tmp_path):
    from megatron_llava.observe.run_log import read_log, settings_digest

    path = tmp_path / "run.jsonl"
    reporter = make_reporter(log_file=str(path))
    reporter.started(200, "lr: 1", CPU)
    first = json.loads(path.read_text())
    assert list(first) == ["event", "iteration", "time", "settings", "environment"]
    assert first["environment"]["torch"] == torch.__version__
    reporter.training(210, VALUES, interval(), CPU)
    (start,) = read_log(path).starts
    assert (start.iteration, start.settings) == (200, settings_digest("lr: 1"))
    assert abs(datetime.fromisoformat(start.time).timestamp() - time.time()) < 600
    # Without a file there is nothing to write to.
    make_reporter().started(0, "lr: 1", CPU)


def test_a_line_that_a_crash_cut_short_stays_a_line_of_its_own(make_reporter, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"iteration": 10}\n{"iterat')
    make_reporter(log_file=str(path)).training(10, VALUES, interval(), CPU)
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"iteration": 10}', '{"iterat'] and len(lines) == 3
    assert json.loads(lines[2])["iteration"] == 10


def test_a_log_may_be_a_pipe(make_reporter, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    make_reporter(log_file=str(tmp_path / "pipe")).validation(10, 1.25, 5000, 3.0)
    assert json.loads(os.read(reading, 1000)) == {"iteration": 10, "valid loss": 1.25}
    os.close(reading)


def test_tensorboard_reads_what_was_written(make_reporter, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reporter = make_reporter(tensorboard_dir=str(tmp_path / "events"))
    reporter.training(10, VALUES, interval(), CPU)
    reporter.training(20, {**VALUES, "lm loss": 1.5}, interval(), CPU)
    reporter.validation(20, 1.25, 5000, 3.0)
    reporter.close()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    names = {f"train/{name}" for name in QUANTITIES} | {"valid/valid loss"}
    assert set(events.Tags()["scalars"]) == names
    losses = [(event.step, event.value) for event in events.Scalars("train/lm loss")]
    assert losses == [(10, pytest.approx(2.34567)), (20, 1.5)]
    assert [event.value for event in events.Scalars("valid/valid loss")] == [1.25]


def test_other_ranks_write_nothing(make_reporter, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr", Terminal())
    log_file, events = tmp_path / "logs" / "run.jsonl", tmp_path / "events"
    reporter = make_reporter(active=False, log_file=str(log_file), tensorboard_dir=str(events))
    reporter.message("hello")
    reporter.advance_to(5)
    reporter.training(10, VALUES, interval(), CPU)
    reporter.validation(10, 1.25, 5000, 3.0)
    reporter.close()
    assert reporter.stream.getvalue() == ""
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("stderr", "asked", "shown"),
    [(io.StringIO, True, False), (Terminal, True, True), (Terminal, False, False)],
    ids=["no terminal", "terminal", "--no-progress-bar"],
)
def test_a_bar_is_for_terminals(make_reporter, monkeypatch, stderr, asked, shown):
    stream = stderr()
    monkeypatch.setattr("sys.stderr", stream)
    reporter = make_reporter(progress_bar=asked, train_iters=20)
    reporter.advance_to(7)
    reporter.training(7, VALUES, interval(), CPU)
    reporter.close()
    assert ("7/20" in stream.getvalue()) == shown
    # Lines go to the stream in either case, whole.
    assert line_of(reporter).startswith("step 7/20 | lm loss 2.346 | ")


def test_a_resumed_run_begins_its_bar_where_it_is(make_reporter, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    reporter = make_reporter(train_iters=20)
    reporter.advance_to(15)
    assert reporter._bar.n == 15


def test_validation_line(make_reporter):
    reporter = make_reporter()
    reporter.validation(30, 1.23456, 54321, 2.34)
    line = "step 30/110 | valid loss 1.2346 | 54,321 supervised tokens | 2.3 s"
    assert line_of(reporter) == line


def test_nothing_happened_in_no_time(make_reporter):
    """The numbers must be numbers, whatever was counted."""
    reporter = make_reporter()
    names = ("steps", "tokens", "padded_tokens", "samples", "images", "data_seconds")
    nothing = interval(0.0, **dict.fromkeys((*names, "useful_flops", "recomputed_flops"), 0))
    reporter.training(110, {"lm loss": 0.0}, nothing, CPU)
    line = line_of(reporter)
    assert "lm loss 0 |" in line and "fill 0.0 %" in line and "eta 0:00:00" in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0, "0"),
        (1e-5, "1.00e-05"),
        (2.5e-6, "2.50e-06"),
        (0.01, "0.01"),
        (0.123456, "0.1235"),
        (1.0, "1"),
        (2.34567, "2.346"),
        (1234.5, "1234"),
        (9999.4, "9999"),
        (9999.6, "10,000"),
        (123456, "123,456"),
        (1234567.8, "1,234,568"),
        (-2.34567, "-2.346"),
        (-123456, "-123,456"),
    ],
)
def test_numbers_are_short_and_readable(value, shown):
    from megatron_llava.observe.metrics import _short

    assert _short(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (90061, "25:01:01")],
)
def test_clock(seconds, shown):
    from megatron_llava.observe.metrics import _clock

    assert _clock(seconds) == shown


def test_a_log_file_that_cannot_be_written_is_one_line(make_reporter, tmp_path):
    with pytest.raises(ValueError) as caught:
        make_reporter(log_file=str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"--log-file {tmp_path}: ") and "\n" not in message


def test_a_tensorboard_folder_that_cannot_be_made_is_one_line(make_reporter, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "events"
    with pytest.raises(ValueError) as caught:
        make_reporter(tensorboard_dir=str(folder))
    message = str(caught.value)
    assert message.startswith(f"--tensorboard-dir {folder}: ") and "\n" not in message
