"""A resumed run continues the interrupted one; a save that fails leaves the last good one."""

import re
import shutil

import numpy as np
import pytest
import torch
from checkpoint_jobs import save_on_full_disk
from distributed_jobs import train, train_until_disk_is_full, train_without_room

from megatron_llava.parallel.checkpoint_directory import latest_iteration

MODULE_RATES = ["--mm-vision-tower-lr=2e-4", "--mm-projector-lr=5e-3"]
DISTRIBUTED = ["--use-distributed-optimizer"]
OVERLAPS = [*DISTRIBUTED, "--overlap-grad-reduce", "--overlap-param-gather"]
PIPELINE = ["--pipeline-model-parallel-size=2"]
VARIANTS = {
    "one-rank": (1, []),
    "one-rank-bf16": (1, ["--bf16", "--async-save"]),
    "one-rank-module-rates": (1, MODULE_RATES),
    "one-rank-distributed-optimizer": (1, [*DISTRIBUTED, *MODULE_RATES]),
    "dp2-overlaps-bf16": (2, ["--bf16", *OVERLAPS, *MODULE_RATES]),
    # Two good steps double the scale: one of the first three is counted on.
    "dp2-overlaps-fp16": (
        2,
        ["--fp16", "--initial-loss-scale=64", "--loss-scale-window=2", *OVERLAPS],
    ),
    "pp2-vpp2-overlaps-async": (
        2,
        [*PIPELINE, "--num-layers-per-virtual-pipeline-stage=1", *OVERLAPS, "--async-save"],
    ),
    "tp2-pp2": (4, ["--tensor-model-parallel-size=2", *PIPELINE]),
}


def saving(folder, *more):
    return [f"--save={folder}", f"--load={folder}", "--save-interval=3", *more]


def start(pool, arguments, folder, world_size=1):
    """Train the first three steps of a run and save them."""
    stop = saving(folder, "--exit-interval=3")
    steps = pool.run(train, [*arguments, *stop], world_size=world_size)[0]["steps"]
    assert latest_iteration(folder) == 3
    return steps


@pytest.fixture(scope="module")
def saved(pool, setup, tmp_path_factory):
    """The folder of a run on one rank, saved after three of six steps; to be read only."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    start(pool, setup.arguments(steps=6), folder)
    return folder


@pytest.fixture(scope="module")
def saved_buckets(pool, setup, tmp_path_factory):
    """As ``saved``, with the distributed optimizer in its own buckets."""
    folder = tmp_path_factory.mktemp("buckets") / "run"
    start(pool, setup.arguments(*DISTRIBUTED, steps=6), folder)
    return folder


def elsewhere(folder, tmp_path):
    """Flags that read a run and write to another folder."""
    return [f"--load={folder}", f"--save={tmp_path / 'elsewhere'}", "--save-interval=3"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_continuous_bit_by_bit(pool, setup, tmp_path, variant):
    world_size, flags = VARIANTS[variant]
    shared = [flag for flag in flags if flag != "--async-save"]
    expected = pool.run(
        train, setup.arguments(*shared, steps=6), world_size=world_size, with_shards=True
    )
    arguments = setup.arguments(*flags, steps=6)
    start(pool, arguments, tmp_path, world_size)
    second = [*arguments, *saving(tmp_path)]
    resumed = pool.run(train, second, world_size=world_size, with_shards=True)
    assert [step["iteration"] for step in resumed[0]["steps"]] == [4, 5, 6]
    assert resumed[0]["steps"] == expected[0]["steps"][3:]
    for rank in range(world_size):
        pairs = zip(expected[rank]["shards"], resumed[rank]["shards"], strict=True)
        for wanted, found in pairs:
            assert np.array_equal(wanted.array, found.array), wanted.key


@pytest.mark.proves("C13")
def test_steps_of_whole_epochs_resume_within_one(pool, setup, tmp_path):
    """Of two data-parallel ranks or one; before it ends, batches are those of a run without."""
    flags = ["--drop-last", "--balance-packs=0", "--group-by-modality-length"]
    arguments = setup.arguments(*flags, steps=6, batch=12)
    whole = pool.run(train, arguments)[0]
    (said,) = [message for message in whole["messages"] if "--drop-last" in message]
    planned, steps, batch, left = map(int, re.findall(r"\d+", said)[:4])
    assert (batch, planned) == (12, 12 * steps + left) and 0 < left < 12 and 1 < steps < 6
    start(pool, arguments, tmp_path)
    resumed = pool.run(train, [*arguments, *saving(tmp_path)], world_size=2)[0]["steps"]
    for step, expected in zip(resumed, whole["steps"][3:], strict=True):
        assert step["lm loss"] == pytest.approx(expected["lm loss"], rel=1e-5)
    without = pool.run(train, [flag for flag in arguments if flag != "--drop-last"])[0]
    assert not any("left out" in message for message in without["messages"])
    assert without["steps"][:steps] == whole["steps"][:steps]
    assert without["steps"][steps] != whole["steps"][steps]


def test_a_scale_that_has_not_settled_goes_on_falling(pool, setup, tmp_path):
    """Saved while every step so far overflowed, so that Adam has no state yet."""
    arguments = setup.arguments("--fp16", "--max-skipped-steps=0", *PIPELINE, steps=6)
    steps = start(pool, arguments, tmp_path, 2)
    resumed = pool.run(train, [*arguments, *saving(tmp_path)], world_size=2)[0]
    steps += resumed["steps"]
    # The second overflow is the first that --hysteresis 2 heeds.
    assert [step["loss scale"] for step in steps] == [2.0**n for n in (32, 31, 30, 29, 28, 27)]
    assert [step["skipped steps"] for step in steps] == [0] * 6
    assert sum("overflows at a loss scale" in text for text in resumed["messages"]) == 3


def test_module_rates_come_back_to_their_modules(pool, setup, tmp_path):
    arguments = setup.arguments(*MODULE_RATES, steps=6)
    steps = start(pool, arguments, tmp_path)
    steps += pool.run(train, [*arguments, *saving(tmp_path)])[0]["steps"]
    for step in steps:
        assert step["lr x0.2"] == pytest.approx(0.2 * step["lr"])
        assert step["lr x5"] == pytest.approx(5 * step["lr"])


def test_a_finished_run_does_nothing_more(pool, setup, saved, tmp_path):
    arguments = [*setup.arguments(steps=3), *elsewhere(saved, tmp_path)]
    assert pool.run(train, arguments)[0]["steps"] == []


def test_a_full_disk_leaves_the_last_good_checkpoint(pool, setup, tmp_path):
    arguments = setup.arguments(steps=6)
    start(pool, arguments, tmp_path)
    for flags in ([], ["--async-save"]):
        full = [*arguments, *saving(tmp_path), *flags]
        error = pool.run(train_until_disk_is_full, full, 20_000)[0]
        assert "iter_0000006" in error and "untouched" in error and "\n" not in error
        assert "rank 0: " in error
        assert latest_iteration(tmp_path) == 3
        assert [path.name for path in tmp_path.glob("iter*")] == ["iter_0000003"]
    assert len(pool.run(train, [*arguments, *saving(tmp_path)])[0]["steps"]) == 3


def test_a_disk_that_is_full_to_the_last_byte_spoils_nothing(pool, setup, tmp_path):
    """Not even the small files beside the checkpoints, which every save may write."""
    arguments = setup.arguments(steps=6)
    start(pool, arguments, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = [*arguments, *saving(tmp_path), "--make-vocab-size-divisible-by=64"]
    error = pool.run(train_until_disk_is_full, changed, 300)[0]
    assert "untouched" in error and "\n" not in error
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_rank_stops_all(pool, setup, tmp_path, rank):
    """The first rank fails before the others have begun to write, and they must not wait for it."""
    arguments = [*setup.arguments(steps=3), *saving(tmp_path)]
    errors = pool.run(save_on_full_disk, arguments, rank, world_size=2)
    assert all(f"could not be written (rank {rank}: " in error for error in errors)
    assert not list(tmp_path.glob("iter*"))


@pytest.mark.parametrize(
    "parts, flags, more",
    [
        ("mm_mlp_adapter", DISTRIBUTED, []),
        ("mm_mlp_adapter,mm_vision_tower", [], []),
        ("mm_mlp_adapter", ["--bf16"], []),
        ("mm_mlp_adapter", DISTRIBUTED, ["--dist-ckpt-optim-fully-reshardable"]),
    ],
    ids=["distributed", "replicated", "bf16", "reshardable"],
)
def test_a_stage_where_everything_is_frozen_saves_and_resumes(
    pool, setup, tmp_path, parts, flags, more
):
    arguments = setup.arguments(*PIPELINE, f"--mm-tunable-parts={parts}", *flags, steps=6)
    expected = pool.run(train, arguments, world_size=2)[0]["steps"]
    start(pool, [*arguments, *more], tmp_path, 2)
    resumed = pool.run(train, [*arguments, *saving(tmp_path, *more)], world_size=2)[0]["steps"]
    assert resumed == expected[3:]


def test_padding_between_buckets_moves_nothing_that_is_saved(pool, setup, tmp_path):
    """Core slices what it gathers as if that padding were in it: main weights of neighbours."""
    many = [*OVERLAPS, "--ddp-bucket-size=5000", *MODULE_RATES]
    arguments = setup.arguments(*many, steps=6)
    expected = pool.run(train, arguments, world_size=4)[0]["steps"]
    reshardable = "--dist-ckpt-optim-fully-reshardable"
    start(pool, [*arguments, reshardable], tmp_path / "run", 4)
    again = [*arguments, *elsewhere(tmp_path / "run", tmp_path), reshardable]
    assert pool.run(train, again, world_size=4)[0]["steps"] == expected[3:]
    one = setup.arguments(*DISTRIBUTED, *MODULE_RATES, steps=6)
    steps = pool.run(train, [*one, *elsewhere(tmp_path / "run", tmp_path)])[0]["steps"]
    for found, wanted in zip(steps, expected[3:], strict=True):
        assert found["lm loss"] == pytest.approx(wanted["lm loss"], rel=1e-4)
        assert found["grad norm"] == pytest.approx(wanted["grad norm"], rel=1e-3)
    # Of a version that did not put it right, nothing says which numbers are wrong.
    path = tmp_path / "run/iter_0000003/common.pt"
    common = torch.load(path, weights_only=False)
    del common["optimizer_kind"]["padding_placed"]
    torch.save(common, path)
    with pytest.raises(AssertionError, match="which mixed up the optimizer state of neighbours"):
        pool.run(train, [*one, *elsewhere(tmp_path / "run", tmp_path)])


@pytest.mark.parametrize("model", ["dinov2", "aimv2-native"])
def test_a_run_with_a_tower_of_transformers_resumes(pool, setup, tmp_path, model):
    """Saved by two data-parallel ranks, resumed by two tensor-parallel ones."""
    arguments = setup.arguments("--use-distributed-optimizer", model=model, steps=6)
    expected = pool.run(train, arguments, world_size=2)[0]["steps"]
    arguments.append("--dist-ckpt-optim-fully-reshardable")
    start(pool, arguments, tmp_path, 2)
    others = ["--tensor-model-parallel-size=2", "--vision-parallel=data"]
    resumed = pool.run(train, [*arguments, *others, *saving(tmp_path)], world_size=2)[0]["steps"]
    assert len(resumed) == 3
    for found, wanted in zip(resumed, expected[3:], strict=True):
        assert found["lm loss"] == pytest.approx(wanted["lm loss"], rel=1e-4)
        assert found["grad norm"] == pytest.approx(wanted["grad norm"], rel=1e-3)


def test_rates_of_the_command_line_win_over_those_saved(pool, setup, saved, tmp_path):
    arguments = setup.arguments(steps=6)
    changed = [flag for flag in arguments if not flag.startswith("--lr=")] + ["--lr=5e-4"]
    expected = pool.run(train, changed)[0]["steps"][3:]
    resumed = pool.run(train, [*changed, *elsewhere(saved, tmp_path)])[0]["steps"]
    assert [step["lr"] for step in resumed] == [step["lr"] for step in expected]


REFUSED = [
    (["--mm-vision-tower-lr=1e-4"], 1, "--mm-vision-tower-lr and --mm-projector-lr"),
    (["--seed=7"], 1, "--finetune"),
    (["--drop-last"], 1, "--drop-last with its --global-batch-size changed"),
    (["--bf16"], 1, "saved without --bf16.*resume without --bf16"),
    (DISTRIBUTED, 1, "saved without --use-distributed-optimizer"),
]


@pytest.mark.parametrize("flags, world_size, said", REFUSED, ids=lambda value: str(value)[:30])
def test_a_resume_that_cannot_continue_is_refused(
    pool, setup, saved, tmp_path, flags, world_size, said
):
    arguments = [*setup.arguments(steps=6), *elsewhere(saved, tmp_path), *flags]
    with pytest.raises(AssertionError, match=said):
        pool.run(train, arguments, world_size=world_size)


def test_a_resume_that_trains_more_is_refused_and_one_of_less_is_not(pool, setup, tmp_path):
    both = setup.arguments("--mm-tunable-parts=mm_mlp_adapter,mm_vision_tower", steps=6)
    start(pool, both, tmp_path / "run")
    with pytest.raises(AssertionError) as caught:
        pool.run(train, [*setup.arguments(steps=6), *elsewhere(tmp_path / "run", tmp_path)])
    said = str(caught.value)
    assert "was trained with --mm-tunable-parts mm_mlp_adapter,mm_vision_tower, and has no" in said
    assert "the run trains mm_language_model,mm_mlp_adapter,mm_vision_tower: train the same" in said
    less = setup.arguments("--mm-tunable-parts=mm_mlp_adapter", steps=6)
    steps = pool.run(train, [*less, *elsewhere(tmp_path / "run", tmp_path)])[0]["steps"]
    assert [step["iteration"] for step in steps] == [4, 5, 6]


def test_a_resume_finds_what_was_added_by_itself(pool, setup, tmp_path):
    """The flags are those of the first start; the saved model knows what it has."""
    added = ("--cross-image-attention", "--temporal-encoder-layers=1", "--mm-projector-lr=5e-3")
    expected = pool.run(train, setup.arguments(*added, steps=6))[0]["steps"]
    start(pool, setup.arguments(*added, steps=6), tmp_path / "run")
    for flags in (added, added[-1:]):
        arguments = [*setup.arguments(*flags, steps=6), *elsewhere(tmp_path / "run", tmp_path)]
        assert pool.run(train, arguments)[0]["steps"] == expected[3:]
    arguments = setup.arguments("--no-cross-image-attention", *added[-1:], steps=6)
    with pytest.raises(AssertionError, match="--cross-image-attention is False, and .* says True"):
        pool.run(train, [*arguments, *elsewhere(tmp_path / "run", tmp_path)])


@pytest.mark.parametrize(
    "name, kept, flag, said",
    [
        ("common.pt", 0, "--load", ": common.pt is missing"),
        ("common.pt", 9, "--load", ": common.pt: "),
        ("metadata.json", 9, "--load", r"/metadata.json: cannot be read \(JSONDecodeError\)"),
        (".metadata", 900, "--load", r"/.metadata: cannot be read \(UnpicklingError\)"),
        (".metadata", 0, "--pretrained-checkpoint", "/.metadata: cannot be read"),
        ("__0_1.distcp", 0, "--load", r": the file of .* is missing \(__0_1.distcp\)"),
        ("__0_1.distcp", 900, "--load", "/__0_1.distcp: truncated: 900 bytes, and .* ends at"),
    ],
)
def test_a_damaged_checkpoint_is_named(pool, setup, saved, tmp_path, name, kept, flag, said):
    shutil.copytree(saved, tmp_path / "run")
    file = tmp_path / "run/iter_0000003" / name
    content = file.read_bytes()[:kept]
    file.unlink()
    if kept:
        file.write_bytes(content)
    arguments = [*setup.arguments(steps=6), f"{flag}={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match=f"CheckpointError: .*iter_0000003{said}"):
        pool.run(train, arguments, world_size=2)


REFUSED_BUCKETS = [
    (["--tensor-model-parallel-size=2"], "pipeline 1 x 1 and cannot be read at 2 x 1.*fully-resh"),
    (
        ["--overlap-grad-reduce", "--ddp-bucket-size=20000", "--no-save-optim"],
        "other buckets.*--ddp-bucket-size",
    ),
    (["--mm-tunable-parts=mm_mlp_adapter"], "other buckets.*--mm-tunable-parts"),
]


@pytest.mark.parametrize("flags, said", REFUSED_BUCKETS, ids=["tp2", "buckets", "frozen"])
def test_buckets_that_the_run_does_not_have_are_refused(
    pool, setup, saved_buckets, tmp_path, flags, said
):
    arguments = setup.arguments(*DISTRIBUTED, *flags, steps=6)
    with pytest.raises(AssertionError, match=said):
        pool.run(train, [*arguments, *elsewhere(saved_buckets, tmp_path)], world_size=2)


def test_buckets_too_small_for_more_ranks_are_refused(pool, setup, tmp_path):
    """What one rank saved, two cannot read, whether they save it or not."""
    folder = tmp_path / "run"
    arguments = setup.arguments(*OVERLAPS, "--ddp-bucket-size=20000", steps=6)
    start(pool, arguments, folder)
    with pytest.raises(AssertionError, match="nor --load read, a bucket of .* gradients that 2"):
        pool.run(train, [*arguments, f"--load={folder}"], world_size=2)


def test_stages_of_other_layers_are_refused(pool, setup, tmp_path):
    """The same number of parameters may lie on every rank, and be other ones."""
    arguments = setup.arguments(*PIPELINE, *DISTRIBUTED, steps=6)
    start(pool, arguments, tmp_path / "run", 2)
    virtual = ["--num-layers-per-virtual-pipeline-stage=1"]
    uneven = ["--decoder-first-pipeline-num-layers=1"]
    for flags, said in (
        (virtual, "virtual stages on each rank 1 and cannot be read at 2"),
        (uneven, r"layers of the stages \[\[2\], \[2\]\] and cannot be read at \[\[1\], \[3\]\]"),
    ):
        other = [*arguments, *flags, *elsewhere(tmp_path / "run", tmp_path)]
        with pytest.raises(AssertionError, match=said):
            pool.run(train, other, world_size=2)


def test_not_enough_room_is_said_before_anything_is_written(pool, setup, tmp_path):
    error = pool.run(train_without_room, [*setup.arguments(steps=3), *saving(tmp_path)])[0]
    assert "7 are free" in error and "--save" in error
    assert not list(tmp_path.glob("iter*"))


@pytest.mark.proves("D2", "D5")
def test_weights_alone_start_a_new_run(pool, setup, saved, tmp_path):
    arguments = [*setup.arguments("--seed=7", steps=3), *elsewhere(saved, tmp_path)]
    new = [flag for flag in arguments if not flag.startswith("--pretrained-checkpoint")]
    finetuned = pool.run(train, [*new, "--finetune"])
    assert finetuned[0]["steps"][0]["iteration"] == 1


@pytest.mark.parametrize("flags", [["--bf16"], ["--bf16", *DISTRIBUTED]])
def test_weights_of_a_resume_without_optimizer_state_are_those_saved(pool, setup, tmp_path, flags):
    arguments = setup.arguments(*flags, steps=6)
    expected = pool.run(train, arguments)[0]["steps"]
    start(pool, arguments, tmp_path)
    resumed = pool.run(train, [*arguments, *saving(tmp_path), "--no-load-optim"])[0]["steps"]
    assert resumed[0]["lm loss"] == expected[3]["lm loss"]
    assert [step["lr"] for step in resumed] == [step["lr"] for step in expected[3:]]
    # An update from the weights before the load would throw the loss back to the start.
    assert resumed[1]["lm loss"] == pytest.approx(expected[4]["lm loss"], rel=0.2)


def test_a_run_from_random_weights_resumes_from_its_own_folder(pool, setup, tmp_path):
    yaml = (setup.root / "model.yaml").read_text()
    config = tmp_path / "model.yaml"
    config.write_text(yaml)
    without = [
        flag for flag in setup.arguments(steps=6) if not flag.startswith("--pretrained-checkpoint")
    ]
    start(pool, [*without, f"--config={config}"], tmp_path / "run")
    resumed = pool.run(train, [*without, *saving(tmp_path / "run")])[0]["steps"]
    assert resumed[0]["iteration"] == 4


@pytest.mark.proves("D9")
@pytest.mark.parametrize("world_size, more", [(1, ["--async-save"]), (2, DISTRIBUTED)])
def test_the_newest_checkpoints_are_kept(pool, setup, tmp_path, world_size, more):
    """Seed 002 keeps one: the run's own last, and after a resumption the one that it came from."""
    root = tmp_path / "run"
    flags = [f"--save={root}", f"--load={root}", "--save-interval=1", "--save-total-limit=1", *more]
    flags.append("--lr-decay-iters=9")

    def kept(*flags, steps=5):
        said = pool.run(train, setup.arguments(*flags, steps=steps), world_size=world_size)
        assert latest_iteration(root) == int(max(root.glob("iter*")).name[5:])
        removed = [message for message in said[0]["messages"] if message.startswith("removed")]
        return sorted(int(path.name[5:]) for path in root.glob("iter*")), len(removed)

    assert kept(*flags, "--exit-interval=3") == ([3], 2)
    assert kept(*flags) == ([3, 5], 1)
    assert kept(*flags, "--save-retain-interval=6", steps=7) == ([5, 6, 7], 1)


def test_buckets_of_which_a_rank_has_only_padding_are_refused_before_training(
    pool, setup, tmp_path
):
    """Core would assert, in the first save."""
    buckets = (
        "--use-distributed-optimizer",
        "--overlap-grad-reduce",
        "--ddp-bucket-size=1",
    )
    save = (f"--save={tmp_path / 'run'}", "--save-interval=3")
    with pytest.raises(AssertionError, match="2 data-parallel ranks share.*--ddp-bucket-size"):
        pool.run(train, setup.arguments(*buckets, *save, steps=3), world_size=2)
    assert not (tmp_path / "run").exists()
    reshardable = "--dist-ckpt-optim-fully-reshardable"
    pool.run(train, setup.arguments(*buckets, *save, reshardable, steps=3), world_size=2)
