"""The programs as a user starts them: help, one-line errors, one short run through all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from child_seconds import child_seconds
from command_line_cases import (
    TOOLS,
    TRAIN,
    Case,
    all_cases,
    make_inputs,
    one_run,
    printed_flags,
    tiny,
    tool_errors,
    train_errors,
    train_flags,
)
from own_process import ENVIRONMENT, TORCHRUN
from ran_cases import ran

from megatron_llava.config.cli import parse_args
from megatron_llava.config.run import all_fields

pytestmark = pytest.mark.usefixtures("cpu_platform")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command-lines")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def results(inputs: Path) -> dict[str, tuple[Case, dict]]:
    """What became of every case, all run in one process."""
    cases = all_cases(inputs)
    return dict(zip(cases, zip(cases.values(), ran(cases.values()), strict=True), strict=True))


@pytest.mark.parametrize("name", one_run(Path()))
def test_the_programs_of_one_run_succeed(results, name):
    case, result = results[name]
    assert result["status"] == 0, result["err"]
    assert all(word in result["out"] for word in case.words), result["out"]
    assert "Traceback" not in result["err"] and "Warning" not in result["err"]


@pytest.mark.parametrize("name", [*train_errors(Path()), *tool_errors(Path())])
def test_a_user_error_is_one_line(results, name):
    case, result = results[name]
    lines = result["err"].splitlines()
    assert result["status"] == case.status, result["err"]
    assert len(lines) == 1, result["err"]
    assert "error: " in lines[0]
    assert all(word in lines[0] for word in case.words), lines[0]


def test_the_deprecated_fp8_flag_is_an_error_on_a_cpu(inputs, monkeypatch, capsys):
    stderr = error_of_main(tiny(inputs, "--fp8-hybrid"), monkeypatch, capsys)
    notice, error = stderr.splitlines()
    assert notice == "--fp8-hybrid is deprecated: use --fp8-format hybrid"
    assert "--fp8-format hybrid needs a GPU, and --device is cpu" in error


def error_of_main(arguments, monkeypatch, capsys, **torchrun) -> str:
    """What training says on standard error before it starts anything, in this process."""
    from megatron_llava.train import main

    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("flag", ["--help", "--print-config"])
def test_one_rank_speaks_for_all(monkeypatch, capsys, flag):
    from megatron_llava.train import main

    shown = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            main([flag])
        assert stopped.value.code == 0
        shown.append(capsys.readouterr().out)
    assert "global" in shown[0] and shown[1] == ""


def test_an_unknown_flag_is_said_by_the_first_rank_only(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        assert error_of_main(["--x"], monkeypatch, capsys, RANK=rank).count("\n") == lines


def test_another_rank_waits_for_the_first_and_names_itself(inputs, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("megatron_llava.platform.job_exit.time.sleep", waited.append)
    for rank, name in (("0", TRAIN), ("1", f"{TRAIN} (rank 1)")):
        err = error_of_main(train_flags(inputs), monkeypatch, capsys, RANK=rank)
        assert err.startswith(f"{name}: error: --num-layers is not known") and err.count("\n") == 1
    assert len(waited) == 1 and waited[0] > 0


def test_two_ranks_say_an_error_once(inputs):
    arguments = tiny(inputs, "--tensor-model-parallel-size=3")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", TRAIN, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode != 0
    message = "2 ranks cannot be divided by --tensor-model-parallel-size 3"
    assert done.stderr.count(message) == 1, done.stderr
    assert f"{TRAIN}: error: {message}" in done.stderr
    assert done.stdout == ""


@pytest.mark.proves("E8")
def test_a_sweep_trains_its_runs_in_turn(inputs, results):
    assert results["import"][1]["status"] == results["preprocess"][1]["status"] == 0
    done = subprocess.run(
        [sys.executable, TOOLS["sweep"], "--sweep", str(inputs / "sweep.yaml")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 of 2 runs are complete\n")
    logs = [(inputs / f"sweep-{seed}.jsonl").read_text().splitlines() for seed in (5, 6)]
    losses = [json.loads(log[-1])["lm loss"] for log in logs]
    assert losses[0] > 0 and losses[1] > 0


def test_a_printed_configuration_reads_back_as_the_same(inputs, results):
    _, result = results["print"]
    assert (result["status"], result["err"]) == (0, "")
    assert "lr: 3.0e-05  # flag" in result["out"]
    path = inputs / "printed.yaml"
    path.write_text(result["out"])
    given, read = parse_args(printed_flags(inputs)), parse_args([f"--config={path}"])
    for name in all_fields():
        assert read.get(name) == given.get(name), name
    assert read.get("hidden_size") == 32


@pytest.mark.parametrize("program", TOOLS)
def test_help_of_a_tool(results, program):
    _, result = results[f"{program} --help"]
    assert (result["status"], result["err"]) == (0, "")
    assert "usage: " in result["out"] and "--" in result["out"]


@pytest.mark.parametrize("program", TOOLS)
def test_an_unknown_flag_of_a_tool_is_named(results, program):
    _, result = results[f"{program} --inptu"]
    assert result["status"] == 2
    assert result["err"].splitlines()[-1].endswith("error: unrecognized arguments: --inptu")


def test_help_of_training_is_fast_because_it_imports_no_torch():
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print({'torch', 'megatron', 'numpy'} & set(sys.modules)))\n"
        f"sys.argv = ['train', '--help']\nrunpy.run_module({TRAIN!r}, run_name='__main__')\n"
    )
    seconds = []
    for _ in range(3):
        started = child_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds.append(child_seconds() - started)
        assert done.stdout.splitlines()[-1] == "set()"
    # The quickest of three: the first may compile modules.
    assert min(seconds) < 1
