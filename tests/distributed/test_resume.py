"""A resumed run continues the interrupted one; a save that fails leaves the last good one."""

import numpy as np
import pytest
from distributed_jobs import train, train_until_disk_is_full, train_without_room

from megatron_llava.parallel.checkpoint_directory import latest_iteration

MODULE_RATES = ["--mm-vision-tower-lr=2e-4", "--mm-projector-lr=5e-3"]
VARIANTS = {
    "one-rank": (1, []),
    "one-rank-bf16": (1, ["--bf16"]),
    "one-rank-module-rates": (1, MODULE_RATES),
    "one-rank-distributed-optimizer": (1, ["--use-distributed-optimizer", *MODULE_RATES]),
    "dp2-overlaps-bf16": (
        2,
        [
            "--bf16",
            "--use-distributed-optimizer",
            "--overlap-grad-reduce",
            "--overlap-param-gather",
            *MODULE_RATES,
        ],
    ),
    "tp2-pp2": (4, ["--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"]),
}


def saving(folder, *more):
    return [f"--save={folder}", f"--load={folder}", "--save-interval=10", *more]


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_continuous_bit_by_bit(pool, setup, tmp_path, variant):
    world_size, flags = VARIANTS[variant]
    arguments = setup.arguments(*flags, steps=20)
    continuous = pool.run(train, arguments, world_size=world_size, with_shards=True)
    first = [*arguments, *saving(tmp_path, "--exit-interval=10")]
    pool.run(train, first, world_size=world_size)
    assert latest_iteration(tmp_path) == 10
    second = [*arguments, *saving(tmp_path)]
    resumed = pool.run(train, second, world_size=world_size, with_shards=True)
    assert [step["iteration"] for step in resumed[0]["steps"]] == list(range(11, 21))
    assert resumed[0]["steps"] == continuous[0]["steps"][10:]
    for rank in range(world_size):
        pairs = zip(continuous[rank]["shards"], resumed[rank]["shards"], strict=True)
        for expected, found in pairs:
            assert np.array_equal(expected.array, found.array), expected.key


def test_module_rates_come_back_to_their_modules(pool, setup, tmp_path):
    arguments = [*setup.arguments(*MODULE_RATES, steps=20)]
    steps = pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])[0]["steps"]
    steps += pool.run(train, [*arguments, *saving(tmp_path)])[0]["steps"]
    for step in steps:
        assert step["lr x0.2"] == pytest.approx(0.2 * step["lr"])
        assert step["lr x5"] == pytest.approx(5 * step["lr"])


def test_a_finished_run_does_nothing_more(pool, setup, tmp_path):
    arguments = [*setup.arguments(steps=10), *saving(tmp_path)]
    assert len(pool.run(train, arguments)[0]["steps"]) == 10
    assert pool.run(train, arguments)[0]["steps"] == []


def test_another_data_parallel_size_goes_on_with_the_same_packs(pool, setup, tmp_path):
    arguments = setup.arguments("--use-distributed-optimizer", steps=20)
    continuous = pool.run(train, arguments)[0]["steps"]
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    resumed = pool.run(train, [*arguments, *saving(tmp_path)], world_size=2)[0]["steps"]
    for step, expected in zip(resumed, continuous[10:], strict=True):
        assert step["samples"] == expected["samples"]
        assert step["lm loss"] == pytest.approx(expected["lm loss"], rel=1e-4)


def test_a_full_disk_leaves_the_last_good_checkpoint(pool, setup, tmp_path):
    arguments = setup.arguments(steps=20)
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    error = pool.run(train_until_disk_is_full, [*arguments, *saving(tmp_path)], 20_000)[0]
    assert "iter_0000020" in error and "untouched" in error and "\n" not in error
    assert latest_iteration(tmp_path) == 10
    assert sorted(path.name for path in tmp_path.glob("iter*")) == ["iter_0000010"]
    assert len(pool.run(train, [*arguments, *saving(tmp_path)])[0]["steps"]) == 10


def test_a_disk_that_is_full_to_the_last_byte_spoils_nothing(pool, setup, tmp_path):
    """Not even the small files beside the checkpoints, which every save may write."""
    arguments = setup.arguments(steps=20)
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = [*arguments, *saving(tmp_path), "--make-vocab-size-divisible-by=64"]
    error = pool.run(train_until_disk_is_full, changed, 300)[0]
    assert "untouched" in error and "\n" not in error
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("parts", ["mm_mlp_adapter", "mm_mlp_adapter,mm_vision_tower"])
@pytest.mark.parametrize("flags", [[], ["--use-distributed-optimizer"]], ids=["", "distributed"])
def test_a_stage_where_everything_is_frozen_saves_and_resumes(pool, setup, tmp_path, parts, flags):
    pipeline = ["--pipeline-model-parallel-size=2", f"--mm-tunable-parts={parts}"]
    arguments = setup.arguments(*pipeline, *flags, steps=20)
    continuous = pool.run(train, arguments, world_size=2)[0]["steps"]
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")], world_size=2)
    resumed = pool.run(train, [*arguments, *saving(tmp_path)], world_size=2)[0]["steps"]
    assert resumed == continuous[10:]


def test_rates_of_the_command_line_win_over_those_saved(pool, setup, tmp_path):
    arguments = setup.arguments(steps=20)
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    changed = [flag for flag in arguments if not flag.startswith("--lr=")] + ["--lr=5e-4"]
    expected = pool.run(train, changed)[0]["steps"][10:]
    resumed = pool.run(train, [*changed, *saving(tmp_path)])[0]["steps"]
    assert [step["lr"] for step in resumed] == [step["lr"] for step in expected]


def test_another_ratio_of_rates_is_refused(pool, setup, tmp_path):
    arguments = setup.arguments(steps=20)
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    with pytest.raises(AssertionError, match="--mm-vision-tower-lr and --mm-projector-lr"):
        pool.run(train, [*arguments, *saving(tmp_path), "--mm-vision-tower-lr=1e-4"])


def test_not_enough_room_is_said_before_anything_is_written(pool, setup, tmp_path):
    error = pool.run(train_without_room, [*setup.arguments(steps=10), *saving(tmp_path)])[0]
    assert "7 are free" in error and "--save" in error
    assert not list(tmp_path.glob("iter*"))


def test_other_data_is_refused(pool, setup, tmp_path):
    arguments = setup.arguments(steps=20)
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    changed = [*arguments, *saving(tmp_path), "--seed=7"]
    with pytest.raises(AssertionError, match="--finetune"):
        pool.run(train, changed)
    new = [flag for flag in changed if not flag.startswith("--pretrained-checkpoint")]
    finetuned = pool.run(train, [*new, "--finetune", f"--save={tmp_path / 'new'}"])
    assert finetuned[0]["steps"][0]["iteration"] == 1


LAYOUTS = {
    "tp2": (2, ["--tensor-model-parallel-size=2", "--sequence-parallel"]),
    "pp2": (2, ["--pipeline-model-parallel-size=2"]),
    "one": (1, []),
    "dp2": (2, []),
}
RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]


@pytest.mark.parametrize("optimizer", [[], RESHARDABLE], ids=["replicated", "distributed"])
@pytest.mark.parametrize("pair", ["tp2-pp2", "pp2-dp2", "dp2-tp2", "one-tp2"])
def test_a_run_goes_on_at_another_layout(pool, setup, tmp_path, pair, optimizer):
    before, after = (LAYOUTS[name] for name in pair.split("-"))
    arguments = setup.arguments(*optimizer, *MODULE_RATES, steps=20)
    continuous = pool.run(train, arguments)[0]["steps"]
    first = [*arguments, *before[1], *saving(tmp_path, "--exit-interval=10")]
    pool.run(train, first, world_size=before[0])
    second = [*arguments, *after[1], *saving(tmp_path)]
    resumed = pool.run(train, second, world_size=after[0])[0]["steps"]
    for step, expected in zip(resumed, continuous[10:], strict=True):
        assert step["lm loss"] == pytest.approx(expected["lm loss"], rel=1e-3)
        assert step["grad norm"] == pytest.approx(expected["grad norm"], rel=1e-2)
        assert step["lr x5"] == expected["lr x5"]


def test_a_layout_that_the_optimizer_cannot_be_read_at_is_refused(pool, setup, tmp_path):
    arguments = setup.arguments("--use-distributed-optimizer", steps=20)
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    other = [*arguments, *saving(tmp_path), "--tensor-model-parallel-size=2"]
    with pytest.raises(AssertionError, match="1 x 1 and cannot be read at 2 x 1.*fully-reshard"):
        pool.run(train, other, world_size=2)


@pytest.mark.parametrize("flags", [["--bf16"], ["--bf16", "--use-distributed-optimizer"]])
def test_weights_of_a_resume_without_optimizer_state_are_those_saved(pool, setup, tmp_path, flags):
    arguments = setup.arguments(*flags, steps=20)
    continuous = pool.run(train, arguments)[0]["steps"]
    pool.run(train, [*arguments, *saving(tmp_path, "--exit-interval=10")])
    resumed = pool.run(train, [*arguments, *saving(tmp_path), "--no-load-optim"])[0]["steps"]
    assert resumed[0]["lm loss"] == continuous[10]["lm loss"]
    assert [step["lr"] for step in resumed] == [step["lr"] for step in continuous[10:]]
    # An update from the weights before the load would throw the loss back to the start.
    assert resumed[1]["lm loss"] == pytest.approx(continuous[11]["lm loss"], rel=0.2)


def test_a_run_from_random_weights_resumes_from_its_own_folder(pool, setup, tmp_path):
    yaml = (setup.root / "model.yaml").read_text()
    config = tmp_path / "model.yaml"
    config.write_text(yaml)
    without = [
        flag for flag in setup.arguments(steps=20) if not flag.startswith("--pretrained-checkpoint")
    ]
    first = [*without, f"--config={config}", *saving(tmp_path / "run", "--exit-interval=10")]
    pool.run(train, first)
    resumed = pool.run(train, [*without, *saving(tmp_path / "run")])[0]["steps"]
    assert resumed[0]["iteration"] == 11
