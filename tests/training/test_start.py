"""Which checkpoint a run starts from, and the one-line errors on the way."""

import re

import pytest

from megatron_llava.config.model_yaml import model_to_yaml
from megatron_llava.config.run import RunConfig
from megatron_llava.training.start import (
    architecture_from_checkpoint,
    check_outputs,
    how_to_go_on,
    resumes,
    starting_checkpoint,
)


def make_root(folder, tracker=None, *directories, layers=None):
    """A checkpoint root with a tracker, empty checkpoint folders and an architecture."""
    folder.mkdir()
    if tracker is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(tracker)
    for name in directories:
        (folder / name).mkdir()
    if layers is not None:
        (folder / "model.yaml").write_text(f"language: {{num_layers: {layers}}}\n")
    return str(folder)


def config_of(**values):
    return RunConfig().with_values(values, "flag")


def error_of(config, function=starting_checkpoint):
    with pytest.raises(ValueError) as caught:
        function(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    """A run that has saved twice."""
    return make_root(tmp_path / "run", "20\n", "iter_0000010", "iter_0000020", layers=2)


@pytest.fixture
def converted(tmp_path):
    return make_root(tmp_path / "converted", "release", "release", layers=3)


def test_nothing_given_is_random_weights():
    config = config_of()
    assert starting_checkpoint(config) is None
    assert not resumes(config, None)
    assert architecture_from_checkpoint(config) is config


def test_load_comes_before_the_pretrained_weights(run, converted):
    config = config_of(load=run, pretrained_checkpoint=converted)
    start = starting_checkpoint(config)
    assert start == (run, 20)
    assert resumes(config, start)
    assert architecture_from_checkpoint(config).language.num_layers == 2


@pytest.mark.proves("D2", "D5")
@pytest.mark.parametrize("exists", [True, False])
def test_the_pretrained_weights_are_read_until_load_holds_a_checkpoint(tmp_path, converted, exists):
    folder = tmp_path / "new"
    if exists:
        folder.mkdir()
    config = config_of(load=str(folder), pretrained_checkpoint=converted)
    start = starting_checkpoint(config)
    assert start == (converted, "release")
    assert not resumes(config, start)
    filled = architecture_from_checkpoint(config)
    assert filled.language.num_layers == 3
    assert filled.sources["num_layers"] == "checkpoint"


def test_a_load_without_a_checkpoint_is_random_weights(tmp_path):
    assert starting_checkpoint(config_of(load=str(tmp_path))) is None


def test_a_run_as_pretrained_weights_is_not_resumed(run):
    config = config_of(pretrained_checkpoint=run)
    start = starting_checkpoint(config)
    assert start == (run, 20)
    assert not resumes(config, start)


def test_converted_weights_in_load_start_at_step_0(converted):
    config = config_of(load=converted)
    start = starting_checkpoint(config)
    assert start == (converted, "release")
    assert not resumes(config, start)


def test_finetune_starts_at_step_0(run):
    config = config_of(load=run, finetune=True)
    start = starting_checkpoint(config)
    assert start == (run, 20)
    assert not resumes(config, start)


def test_ckpt_step_chooses_an_earlier_one(run):
    config = config_of(load=run, ckpt_step=10)
    start = starting_checkpoint(config)
    assert start == (run, 10)
    assert resumes(config, start)


def test_a_missing_ckpt_step_is_an_error_even_with_pretrained_weights(run, converted):
    config = config_of(load=run, ckpt_step=15, pretrained_checkpoint=converted)
    message = error_of(config)
    assert "--ckpt-step 15" in message and run in message


def test_exit_on_missing_checkpoint(tmp_path, run):
    message = error_of(config_of(load=str(tmp_path), exit_on_missing_checkpoint=True))
    assert f"--load {tmp_path}" in message and "--exit-on-missing-checkpoint" in message
    config = config_of(load=run, exit_on_missing_checkpoint=True)
    assert starting_checkpoint(config) == (run, 20)


def test_pretrained_weights_must_exist(tmp_path):
    message = error_of(config_of(pretrained_checkpoint=str(tmp_path / "typo")))
    assert f"--pretrained-checkpoint {tmp_path / 'typo'}" in message
    assert "convert_checkpoint.py" in message


@pytest.mark.parametrize("text", ["", "latest", "-5", "1.5", "10 20"])
@pytest.mark.parametrize("flag", ["load", "pretrained_checkpoint"])
def test_a_tracker_that_is_no_number_is_named_with_its_text(tmp_path, flag, text):
    root = make_root(tmp_path / "root", text)
    message = error_of(config_of(**{flag: root}))
    assert f"{root}/latest_checkpointed_iteration.txt" in message
    assert repr(text) in message and "'release'" in message


@pytest.mark.parametrize("text", ["30", "release"])
def test_a_tracker_that_names_a_missing_folder_is_an_error(tmp_path, text):
    root = make_root(tmp_path / "root", text, "iter_0000010")
    message = error_of(config_of(load=root))
    assert f"{root}/latest_checkpointed_iteration.txt names {text}" in message


def test_an_older_step_can_be_read_where_the_tracker_names_a_missing_folder(tmp_path):
    root = make_root(tmp_path / "root", "30", "iter_0000010")
    assert starting_checkpoint(config_of(load=root, ckpt_step=10)) == (root, 10)


def test_a_flag_that_contradicts_the_weights_is_an_error(run):
    message = error_of(config_of(load=run, num_layers=4), architecture_from_checkpoint)
    assert "--num-layers 4" in message and "num_layers 2" in message
    assert f"{run}/model.yaml" in message


def test_checkpoints_are_not_written_over_by_a_run_that_does_not_read_them(run, converted):
    message = error_of(config_of(save=run), check_outputs)
    assert f"--save {run} holds checkpoints up to step 20" in message and f"--load {run}" in message
    check_outputs(config_of(save=run, load=run))
    check_outputs(config_of(save=run, load=converted))
    check_outputs(config_of(save=converted))


ENCODER = {"temporal_encoder_layers": 2}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"cross_image_attention": True}, "--cross-image-attention is True, and .* says False"),
        (
            {"cross_image_attention": True},
            {"cross_image_attention": False},
            "is False, and .* True",
        ),
        ({}, ENCODER, "--temporal-encoder-layers is 2, and .*/model.yaml says 0: a resumed run"),
        (ENCODER, {"temporal_encoder_layers": 1}, "is 1, and .* says 2"),
        (ENCODER, {"temporal_encoder_max_frames": 8}, "max-frames is 8, and .* says 32"),
        ({}, {"temporal_encoder_max_frames": 8}, None),
        (ENCODER, ENCODER, None),
        (ENCODER, {}, None),
    ],
)
def test_a_resumed_run_keeps_the_parameters_that_were_added(tmp_path, before, now, said):
    root = make_root(tmp_path / "run", "10", "iter_0000010")
    (tmp_path / "run" / "model.yaml").write_text(model_to_yaml(config_of(**before)))
    if said is not None:
        message = error_of(config_of(load=root, **now), architecture_from_checkpoint)
        assert re.search(said, message) and "--finetune" in message
    else:
        architecture_from_checkpoint(config_of(load=root, **now))
    architecture_from_checkpoint(config_of(load=root, finetune=True, **now))
    architecture_from_checkpoint(config_of(pretrained_checkpoint=root, **now))


def test_a_checkpoint_without_its_architecture_is_an_error(tmp_path):
    root = make_root(tmp_path / "root", "10", "iter_0000010")
    message = error_of(config_of(load=root), architecture_from_checkpoint)
    assert f"{root}/model.yaml" in message


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("save", "file"),
        ("save", "file/below"),
        ("tensorboard_dir", "file/below"),
        ("log_file", "file/below"),
    ],
)
def test_what_cannot_be_written_is_an_error_before_the_run(tmp_path, name, place):
    (tmp_path / "file").write_text("")
    message = error_of(config_of(**{name: str(tmp_path / place)}), check_outputs)
    option = f"--{name.replace('_', '-')} {tmp_path / place}: "
    assert option in message and f"{tmp_path / 'file'} is not" in message


def test_a_log_that_is_a_folder_is_an_error_before_the_run(tmp_path):
    message = error_of(config_of(log_file=str(tmp_path)), check_outputs)
    assert message == f"--log-file {tmp_path} is a folder: name a file in it"


def test_a_snapshot_that_cannot_be_written_is_an_error_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "snapshot.pickle")
    check_outputs(config_of(memory_snapshot_path=path))
    config = config_of(memory_snapshot_path=path, record_memory_history=True)
    assert error_of(config, check_outputs).startswith(f"--memory-snapshot-path {path}: ")


def test_nothing_is_made_by_the_check(tmp_path):
    check_outputs(config_of())
    check_outputs(config_of(save=str(tmp_path)))
    new = str(tmp_path / "new" / "run")
    check_outputs(config_of(save=new, log_file=new, tensorboard_dir=new))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "start again"),
        ({"save": "out", "load": "out"}, "run the same command again"),
        ({"save": "out", "load": "in"}, "--load out"),
        ({"save": "out", "load": "out", "finetune": True}, "--load out"),
    ],
)
def test_how_a_run_that_ended_too_early_goes_on(values, says):
    assert says in how_to_go_on(config_of(**values))
