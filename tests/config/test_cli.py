import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from child_seconds import child_seconds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_llava.config.cli import config_to_yaml, exit_with_error, parse_args
from megatron_llava.config.fields import FieldSpec
from megatron_llava.config.original_flags import ORIGINAL_FLAGS
from megatron_llava.config.run import RunConfig, all_fields, group_classes
from megatron_llava.config.training import PARTS_WITH_ADAPTERS
from megatron_llava.config.yaml_file import field_values

ROOT = Path(__file__).parents[2]

SPECS = list(all_fields().values())
# argparse drops a value that is nothing but "--".
CHARACTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))
TEXT = st.text(CHARACTERS, min_size=1).filter(lambda text: text != "--")
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def value_of(spec: FieldSpec) -> st.SearchStrategy:
    if spec.choices:
        return st.sampled_from(spec.choices)
    return {
        "bool": st.booleans(),
        "int": st.integers(-(10**9), 10**9),
        "float": FLOATS,
        "str": TEXT,
        "list": st.lists(st.sampled_from(["a", "b_c"]), min_size=1).map(tuple),
        "numbers": st.lists(FLOATS, min_size=1).map(tuple),
    }[spec.kind]


SOME_VALUES = st.lists(
    st.sampled_from(SPECS), unique_by=lambda spec: spec.name, max_size=8
).flatmap(lambda specs: st.fixed_dictionaries({spec.name: value_of(spec) for spec in specs}))


def as_flags(values: dict) -> list[str]:
    flags = []
    for name, value in values.items():
        spec = all_fields()[name]
        if spec.kind == "bool":
            flags.append(spec.option if value else spec.negation)
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            flags.append(f"{spec.option}={text}")
    return flags


def error_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_args(argv, prog="train")
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("train: error: ") and err.count("\n") == 1
    return err


def test_nothing_given_is_all_defaults():
    config = parse_args([])
    assert config == RunConfig()
    assert config.explicit == set()


@given(SOME_VALUES)
def test_flags_set_exactly_what_they_name(values):
    config = parse_args(as_flags(values))
    assert config.explicit == set(values)
    defaults = {spec.name: spec.default for spec in SPECS}
    if values.get("lora_rank", 0) > 0:
        defaults["mm_tunable_parts"] = PARTS_WITH_ADAPTERS
    for spec in SPECS:
        assert config.get(spec.name) == values.get(spec.name, defaults[spec.name])


@given(SOME_VALUES)
def test_a_printed_configuration_reads_back_as_the_same(values):
    text = config_to_yaml(RunConfig().with_values(values, "flag"))
    read = field_values(yaml.safe_load(text), "printed")
    config = RunConfig().with_values(read, "file")
    for spec in SPECS:
        assert config.get(spec.name) == values.get(spec.name, spec.default)
        if spec.info.from_checkpoint != "no":
            # A default that a checkpoint may replace must not come back as the user's wish.
            assert (spec.name in config.explicit) == (spec.name in values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(from_file=SOME_VALUES, from_flags=SOME_VALUES)
def test_flags_win_over_the_file(tmp_path, from_file, from_flags):
    path = tmp_path / "run.yaml"
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in from_file.items()}
    path.write_text(yaml.safe_dump(plain))
    config = parse_args(["--config", str(path), *as_flags(from_flags)])
    expected = {**from_file, **from_flags}
    assert all(config.get(name) == value for name, value in expected.items())
    assert config.explicit == set(expected)
    for name in expected:
        assert config.sources[name] == ("flag" if name in from_flags else "file")
    assert config.config_file == str(path)


def test_values_that_start_with_a_minus():
    assert parse_args(["--mm-vision-select-layer", "-2"]).vision.mm_vision_select_layer == -2


def test_print_config(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("training: {seed: 5, train-iters: 3}\n")
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--config", str(path), "--seed", "6", "--print-config"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  seed: 6  # flag" in lines
    assert "  train_iters: 3  # file" in lines
    assert "  num_workers: 2  # default" in lines
    assert "  unpad_round: null  # default: from the checkpoint, else llava" in lines
    assert "optimizer:" in lines


def test_a_model_built_in_code_is_printed():
    config = RunConfig()
    language = dataclasses.replace(config.language, num_layers=2)
    assert "  num_layers: 2  # default\n" in config_to_yaml(
        dataclasses.replace(config, language=language)
    )


def test_help_shows_every_section_flag_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for group in group_classes():
        assert f"\n{group}:\n" in shown
    for spec in SPECS:
        line = next(line for line in shown.splitlines() if line.strip().startswith(spec.option))
        assert f"{spec.info.help} (default: {spec.default_text})" in shown, line
    assert "--add-qkv-bias, --no-add-qkv-bias" in shown
    assert "--device {auto,cuda,cpu}\n" in shown
    assert "--no-bf16" not in shown


def test_help_is_fast_and_imports_no_torch():
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print({'torch', 'megatron', 'numpy'} & set(sys.modules)))\n"
        "from megatron_llava.config.cli import parse_args\n"
        "from megatron_llava.config.validate import validate\n"
        "parse_args(['--help'])\n"
    )
    durations = []
    for _ in range(3):
        start = child_seconds()
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        durations.append(child_seconds() - start)
        assert run.stdout.splitlines()[-1] == "set()"
    # The quickest of three: the first may compile modules.
    assert min(durations) < 1.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train-iter", "3"], "unknown flag --train-iter; did you mean --train-iters"),
        (["--seq-lenght=8"], "unknown flag --seq-lenght; did you mean --seq-length?"),
        (["--zzz"], "unknown flag --zzz\n"),
        (["--learning_rate", "1e-5"], "--learning_rate is a flag of the original LLaVA code: give"),
        (["--mm_use_im_start_end", "False"], "give nothing; learned rows around images are --im"),
        (["--weight_decay", "0."], "--weight_decay: flags are written with dashes, --weight-decay"),
        (["--tp-comm-overlap"], "--tp-comm-overlap is not offered: Transformer Engine"),
        (["--main-grads-dtype=bf16"], "--main-grads-dtype is not offered: the optimizer reads"),
        (["--cuda-graph-impl=local"], "--cuda-graph-impl is not offered: a CUDA graph"),
        (["stray"], "unexpected argument stray: every setting is a flag"),
        (["--seed", "x"], "--seed: needs an integer, got 'x'"),
        (["--lr", "nan"], "--lr: needs a number, got 'nan'"),
        (["--device", "tpu"], "--device: 'tpu' is not one of auto, cuda, cpu"),
        (["--ckpt-format", "zarr"], "--ckpt-format: 'zarr' is not one of torch_dist"),
        (["--seed"], "--seed: expected one argument"),
        (["--bf16=1"], "--bf16: ignored explicit argument '1'"),
        (["--config", "absent.yaml"], "cannot read absent.yaml: No such file"),
    ],
)
def test_user_errors_are_one_line(capsys, argv, message):
    assert message in error_of(capsys, *argv)


def test_an_error_in_the_file_is_one_line(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {seq_lenght: 8}\n")
    message = f"{path}: unknown key seq_lenght; did you mean seq_length?"
    assert message in error_of(capsys, "--config", str(path))


@pytest.mark.proves("D17")
def test_fp8_hybrid_is_an_alias_with_a_notice(capsys):
    config = parse_args(["--fp8-hybrid"])
    assert config.precision.fp8_format == "hybrid"
    assert config.explicit == {"fp8_format"}
    assert capsys.readouterr().err == "--fp8-hybrid is deprecated: use --fp8-format hybrid\n"
    assert parse_args(["--fp8-hybrid", "--fp8-format", "hybrid"]).explicit == {"fp8_format"}


def test_fp8_hybrid_contradicts_another_format(capsys):
    message = error_of(capsys, "--fp8-hybrid", "--fp8-format", "e4m3")
    assert "--fp8-hybrid contradicts --fp8-format e4m3" in message


def test_exit_with_error_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        exit_with_error("two\nlines", "train")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "train: error: two lines\n"


def test_the_help_says_what_exit_codes_mean(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "75 saved and stopped by SIGTERM: run the same command again" in said
    assert "69 another rank was lost" in said and "2 an error that one line names" in said


@pytest.mark.proves("C2")
def test_what_stands_for_an_original_flag_exists():
    known = {spec.option for spec in all_fields().values()}
    assert not known & set(ORIGINAL_FLAGS)
    names = ("preprocess_data.py", "convert_checkpoint.py")
    tools = [ROOT / "megatron_llava/data/visual_flags.py", *(ROOT / "tools" / n for n in names)]
    of_tools = " ".join(path.read_text() for path in tools)
    for text in ORIGINAL_FLAGS.values():
        for flag in re.findall(r"--[a-z0-9-]+[a-z0-9]", text):
            assert flag in known or f'"{flag}"' in of_tools, flag
