"""Sweeps: the files of examples/sweeps give the published rows, and bad files one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_llava.config.cli import parse_args
from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.observe.published_scores import read_tables
from megatron_llava.plan.sweep import check_flags, read_sweep, slurm_script
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.token_layout import number_of_views

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "sweeps").glob("*.yaml"))


def config_of(run):
    """The settings of a run, with those of its named model."""
    config = parse_args(run.command[run.command.index("megatron_llava.train") + 1 :])
    return fill_named_model(config, config.checkpoint.model)


def example(name):
    return read_sweep(ROOT / "examples" / "sweeps" / f"{name}.yaml", {})


def grids_and_tokens(config):
    """As a row of the published tables: largest grid, most tokens, whether views are shrunk."""
    settings = image_settings(config)
    side = max(width for width, _ in settings.grid_pinpoints) // settings.tile_size
    assert number_of_views((10_000, 10_000), settings) == side * side + 1
    shrunk = settings.image_aspect_ratio.removeprefix("anyres_thresholded_")
    views = shrunk if shrunk.isdigit() else side * side
    return (f"{side}x{side}", f"({views}+1)*729", str(shrunk.isdigit()).upper())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_the_examples_has_flags_and_a_folder_of_its_own(path):
    runs = read_sweep(path, {}).runs
    assert len({run.command for run in runs}) == len({run.name for run in runs}) == len(runs) > 1
    saves = set()
    for run in runs:
        check_flags(run)
        config = config_of(run)
        saves.add(config.checkpoint.save)
        assert config.checkpoint.save == config.checkpoint.load and run.name in str(saves)
        assert config.vision.vision_image_size == 384
    assert len(saves) == len(runs)


@pytest.mark.proves("E8")
def test_the_sweep_of_models_and_grids_has_the_published_rows():
    runs = example("llm_and_grids").runs
    found = []
    for run in runs:
        config = config_of(run)
        assert f"qwen1.5-{run.values['llm']}+" in config.checkpoint.model
        found.append((run.values["llm"].upper(), *grids_and_tokens(config)))
    assert found == [row[:4] for row in read_tables()["llm_scaling"].rows]
    layers = [config_of(run).language.num_layers for run in runs[::2]]
    assert layers == [24, 24, 40, 32, 40]


@pytest.mark.proves("E8")
def test_the_sweep_of_grids_and_tokens_has_the_published_rows():
    found = [grids_and_tokens(config_of(run)) for run in example("grids_and_tokens").runs]
    published = read_tables()["grids_and_tokens"].rows
    assert found == [(row[0], row[1], row[3]) for row in published]


@pytest.mark.proves("E9")
def test_the_other_ablations():
    starts = [config_of(run).checkpoint for run in example("start_stage").runs]
    assert [start.pretrained_checkpoint for start in starts] == ["out/stage1", "out/stage2"]
    pooled = [config_of(run).get("mm_spatial_pool_stride") for run in example("video_pooling").runs]
    assert pooled == [2, 1]
    stores = [config_of(run).data.data_path for run in example("video_data").runs]
    names = [row[0] for row in read_tables()["video_data"].rows]
    assert names == ["video", "video + single-image", "video + multi-image", "video + both"]
    assert stores == [
        "out/video-data-stores/" + name.replace(" + ", "-").replace("-image", "") for name in names
    ]


def sweep(folder, text, **given):
    path = folder / "sweep.yaml"
    path.write_text(text)
    return read_sweep(path, given)


def test_axes_variables_and_kinds_of_flags(tmp_path):
    found = sweep(
        tmp_path,
        "command: 'prog -m \"a b\" $where'\n"
        "variables: {where: here}\n"
        "flags: {save: $where/$run, bf16: true, log: no, t-off: 1, parts: [x, y], price: $$5}\n"
        "axes:\n  lr: [1e-5, 0.5]\n  size: {s: {layers: 2}, m: {layers: 4, t_off: null}}\n",
        where="there",
    )
    assert [run.name for run in found.runs] == ["1e-5_s", "1e-5_m", "0.5_s", "0.5_m"]
    assert found.runs[1].values == {"lr": "1e-5", "size": "m"}
    assert found.runs[1].command == (
        *("prog", "-m", "a b", "there", "--save=there/1e-5_m", "--bf16", "--no-log"),
        *("--parts=x,y", "--price=$5", "--lr=1e-5", "--layers=4"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command: a\naxes: {x: [1]}\nflag: {}\n", "flag: unknown; use command, variables"),
        ("axes: {x: [1]}\n", "has no command"),
        ("command: a\n", "has no axes"),
        ("command: a\naxes: {x: []}\n", "x: has no values"),
        ("command: a\naxes: {x: 3}\n", "x: expected names with values, found 3"),
        ("command: a\naxes: {x: {b: 3}}\n", "x: b: expected names with values, found 3"),
        ("command: a\naxes: {x: [a/b]}\n", "'a/b' cannot be part of a run's name"),
        ("command: a\naxes: {x: {p: {lr: 1}}, y: {q: {lr: 2}}}\n", "run p_q: two axes set lr"),
        (
            "command: a\naxes: {x: {p: {min_lr: 1}}, y: {q: {min-lr: 2}}}\n",
            "run p_q: two axes set min-lr",
        ),
        ("command: a\naxes: {x: [1]}\nflags: {a_b: 1, a-b: 2}\n", "flags: a-b is given twice"),
        ("command: [a, b]\naxes: {x: [1]}\n", "command: expected one text, found ['a', 'b']"),
        ("command: a $b\naxes: {x: [1]}\n", "command: 'a $b' names what is none of $run"),
        ("command: a\naxes: {x: [1]}\nflags: {f: $}\n", "run 1: f: '$' names what is none of"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, words):
    with pytest.raises(ValueError) as caught:
        sweep(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_an_unknown_variable_is_named(tmp_path):
    with pytest.raises(ValueError, match="--set out: .*has no such variable; use output"):
        sweep(tmp_path, "command: a\naxes: {x: [1]}\nvariables: {output: b}\n", out="c")


def test_a_bad_flag_names_its_run(tmp_path, capsys):
    text = "command: python -m megatron_llava.train\naxes: {seq-lenght: [8]}\n"
    with pytest.raises(SystemExit):
        check_flags(sweep(tmp_path, text).runs[0])
    error = capsys.readouterr().err
    assert error.startswith("sweep.py: run 8: error: unknown flag --seq-lenght")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("model: llava-next-vicuna-8b", "run 1e-5: .*llava-next-vicuna-8b"),
        ("save: out", "run 1e-5: --save out needs --save-interval: add it"),
        ("sequence_parallel: true", "run 1e-5: --sequence-parallel"),
        ("tensor_model_parallel_size: 3", "run 1e-5: .* 3"),
        ("tensor_model_parallel_size: 4", None),
    ],
)
def test_flags_that_do_not_go_together_name_their_run(tmp_path, flags, said):
    shared = "model: llava-next-vicuna-7b, data_path: d, seq_length: 8192, train_iters: 9"
    text = (
        "command: torchrun --nnodes 2 --nproc_per_node 2 -m megatron_llava.train\n"
        f"flags: {{{shared}}}\naxes: {{lr: {{1e-5: {{lr: 1e-5, {flags}}}}}}}\n"
    )
    run = sweep(tmp_path, text).runs[0]
    if said is None:
        check_flags(run)
        return
    with pytest.raises(ValueError, match=said) as caught:
        check_flags(run)
    assert "\n" not in str(caught.value)


ECHO = "command: bash -c 'echo \"got $$1\"; exit $${1#--code=}' x\naxes: {code: [0, 7, 0.0]}\n"


def tool(folder, *arguments):
    (folder / "echo.yaml").write_text(ECHO.replace("0.0", "3"))
    command = [sys.executable, ROOT / "tools/sweep.py", "--sweep", folder / "echo.yaml", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_runs_in_turn_to_the_first_that_fails(tmp_path):
    done = tool(tmp_path)
    assert done.returncode == 7 and done.stderr == "error: run 7 ended with code 7\n"
    assert done.stdout.splitlines() == [
        *("run 1 of 3: 0", "got --code=0", "run 2 of 3: 7", "got --code=7")
    ]
    done = tool(tmp_path, "--keep-going")
    assert done.returncode == 1 and "got --code=3" in done.stdout
    assert done.stderr == "error: 2 of 3 runs failed: 7 with code 7, 3 with code 3\n"
    done = tool(tmp_path, "--run", "0")
    assert done.returncode == 0 and done.stdout.endswith("1 of 1 runs are complete\n")


def test_a_slurm_array_has_a_task_for_each_run(tmp_path):
    text = ECHO + "slurm: {time: '1:00:00', exclusive: true, array: 0-2%2}\n"
    script = slurm_script(sweep(tmp_path, text), "echo")
    assert "#SBATCH --array=0-2%2\n#SBATCH --time=1:00:00\n#SBATCH --exclusive\n" in script
    (tmp_path / "job").write_text(script)
    done = subprocess.run(
        ["bash", tmp_path / "job"],
        env={"SLURM_ARRAY_TASK_ID": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 7 and done.stdout == "got --code=7\n"
