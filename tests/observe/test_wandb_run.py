"""Runs at Weights & Biases: without the package, and where it is installed a real one, offline."""

import io
import time
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config

pytestmark = pytest.mark.usefixtures("cpu_platform")


@pytest.mark.proves("D10")
def test_a_missing_package_is_one_line_before_the_run(monkeypatch):
    from megatron_llava.observe import wandb_run

    monkeypatch.setattr(wandb_run, "find_spec", lambda name: None)
    wandb_run.check_wandb(tiny_config())
    with pytest.raises(ValueError) as caught:
        wandb_run.check_wandb(tiny_config(wandb_project="llava"))
    message = str(caught.value)
    assert message.startswith("--wandb-project llava: ") and "\n" not in message
    assert "megatron-llava[wandb]" in message


def test_a_run_that_is_not_taken_is_one_line(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    from megatron_llava.observe.wandb_run import WandbRun

    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError) as caught:
        WandbRun(tiny_config(wandb_project="llava", wandb_save_dir=str(tmp_path)))
    message = str(caught.value)
    assert message.startswith("--wandb-project llava: api_key not configured (no-tty); ")
    assert "WANDB_MODE=offline" in message and "\n" not in message


def records_of(file):
    """What a .wandb file holds: LevelDB's log format after a header of 7 bytes."""
    place, parts = 7, b""
    assert file[:4] == b":W&B"
    while place < len(file):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(file[place + 4 : place + 6], "little"), file[place + 6]
        parts += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def test_an_offline_run_holds_the_settings_and_every_number(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    from megatron_llava.observe.metrics import Reporter
    from megatron_llava.observe.wandb_run import WandbRun
    from megatron_llava.training.interval import Interval

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config(
        wandb_project="llava", wandb_exp_name="first", wandb_save_dir=str(tmp_path / "new")
    )
    outputs = {"log_file": None, "tensorboard_dir": None, "progress_bar": False}
    reporter = Reporter(
        active=True, train_iters=9, wandb=WandbRun(config), stream=io.StringIO(), **outputs
    )
    cpu = torch.device("cpu")
    for step, loss in ((1, 2.5), (2, float("nan"))):
        interval = Interval(steps=1, kinds=(3, 1, 0, 0), started=time.perf_counter() - 1)
        reporter.training(step, {"lm loss": loss, "lr": 1e-5}, interval, cpu)
    reporter.validation(2, 1.25, 10, 1.0)
    reporter.close()
    (path,) = Path(tmp_path / "new").rglob("*.wandb")
    history, runs = {}, []
    for data in records_of(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            runs.append(record.run)
        if record.WhichOneof("record_type") == "history":
            items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
            history.setdefault(record.history.step.num, {}).update(items)
    assert (runs[0].project, runs[0].display_name) == ("llava", "first")
    settings = {update.key: update.value_json for update in runs[0].config.update}
    assert settings["hidden_size"] == "32" and settings["wandb_project"] == '"llava"'
    assert float(history[1]["train/lm loss"]) == 2.5 and float(history[1]["train/lr"]) == 1e-5
    assert "train/lm loss" not in history[2] and "train/tokens/s" in history[2]
    assert float(history[2]["train/text samples"]) == 3
    assert float(history[2]["valid/valid loss"]) == 1.25
