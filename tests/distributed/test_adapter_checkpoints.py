"""Runs with adapters save what they train, and go on from it beside the same frozen weights."""

import shutil

import numpy as np
import pytest
from adapter_jobs import beside_base, exported
from checkpoint_jobs import content
from distributed_jobs import train

from megatron_llava.parallel.checkpoint_directory import latest_iteration

LORA = ("--lora-rank=4", "--lora-alpha=16")
TP2 = ("--tensor-model-parallel-size=2", "--sequence-parallel")
RESHARDABLE = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable")
PP2 = ("--pipeline-model-parallel-size=2",)


def saving(folder):
    return [f"--save={folder}", f"--load={folder}", "--save-interval=3"]


def start(pool, arguments, folder, world_size=1):
    """Train the first three steps of a run and save them."""
    pool.run(train, [*arguments, *saving(folder), "--exit-interval=3"], world_size=world_size)
    assert latest_iteration(folder) == 3


@pytest.fixture(scope="module")
def saved(pool, setup, tmp_path_factory):
    """The folder of a run over two ranks, saved after three of six steps; to be read only."""
    folder = tmp_path_factory.mktemp("adapters") / "run"
    flags = [*LORA, *TP2, "--lora-dropout=0", *RESHARDABLE]
    start(pool, setup.arguments(*flags, steps=6), folder, 2)
    return folder


@pytest.mark.parametrize("layout", [TP2, ()], ids=["tp2-sp", "dp2"])
def test_resumed_equals_continuous_bit_by_bit(pool, setup, tmp_path, layout):
    """With masks of dropout, and the optimizer's state in its own buckets."""
    flags = [*LORA, *layout, "--lora-dropout=0.2", "--use-distributed-optimizer"]
    arguments = setup.arguments(*flags, steps=6)
    expected = pool.run(train, arguments, world_size=2, with_shards=True)
    start(pool, arguments, tmp_path, 2)
    found = pool.run(train, [*arguments, *saving(tmp_path)], world_size=2, with_shards=True)
    assert found[0]["steps"] == expected[0]["steps"][3:]
    for rank in range(2):
        pairs = zip(expected[rank]["shards"], found[rank]["shards"], strict=True)
        for wanted, shard in pairs:
            assert np.array_equal(wanted.array, shard.array), wanted.key


def test_it_resumes_at_another_layout(pool, setup, saved, tmp_path):
    arguments = setup.arguments(*LORA, "--lora-dropout=0", steps=6)
    expected = pool.run(train, arguments)[0]["steps"][3:]
    elsewhere = [f"--load={saved}", f"--save={tmp_path / 'other'}", "--save-interval=3"]
    found = pool.run(train, [*arguments, *elsewhere, *PP2, *RESHARDABLE], world_size=2)[0]["steps"]
    for step, reference in zip(found, expected, strict=True):
        assert step["lm loss"] == pytest.approx(reference["lm loss"], rel=1e-4)
        assert step["grad norm"] == pytest.approx(reference["grad norm"], rel=1e-4)


def test_a_checkpoint_holds_what_is_trained_and_no_frozen_weight(pool, setup, saved):
    (found,) = pool.run(content, saved / "iter_0000003")
    weights = {name for name in found["tensors"] if not name.startswith("optimizer")}
    kinds = {
        name.rsplit("layers.", 1)[-1] if ".lora." in name else name.split(".")[0]
        for name in weights
    }
    linears = ("self_attention.linear_qkv", "self_attention.linear_proj")
    linears += ("mlp.linear_fc1", "mlp.linear_fc2")
    factors = {f"{linear}.lora.{factor}" for linear in linears for factor in "ab"}
    assert kinds == factors | {"vision_projection", "image_newline"}
    states = {name.split("exp_avg.")[-1] for name in found["tensors"] if "exp_avg." in name}
    assert states == weights, "moments of the same and of nothing else"
    assert found["tensors"]["image_newline"][0] == (64,)


@pytest.fixture(scope="module")
def taken_out(pool, setup, saved, tmp_path_factory):
    """A folder with the adapters of ``saved`` in other formats, and differences of logits."""
    folder = tmp_path_factory.mktemp("taken-out")
    hf = setup.folder / "plain-hf"
    return folder, pool.run(exported, saved, setup.root, hf, folder, timeout=120)[0]


@pytest.mark.proves("D6")
def test_a_run_computes_the_same_in_peft_and_merged(taken_out):
    _, differences = taken_out
    assert differences.pop("without adapters") > 1e-2
    assert differences.pop("peft") <= 1e-4
    assert differences.pop("merged") <= 1e-4
    assert not differences


def test_tools_take_adapters_beside_their_base(pool, setup, saved, tmp_path):
    assert pool.run(beside_base, saved, setup.root, tmp_path, timeout=120)[0] <= 1e-4


def test_adapters_alone_start_a_new_run(pool, setup, saved, taken_out):
    """Of a run with --finetune, and imported: the data starts again, what was learned is there."""
    flags = [*LORA, "--lora-dropout=0", "--lr=1e-12"]

    def first_step(*more):
        return pool.run(train, setup.arguments(*flags, *more, steps=3))[0]["steps"][0]

    folder, _ = taken_out
    fresh, tuned = first_step(), first_step(f"--load={saved}", "--finetune")
    assert tuned["iteration"] == 1
    assert tuned["lm loss"] < fresh["lm loss"] - 0.01
    assert first_step(f"--load={folder / 'adapters'}")["lm loss"] == tuned["lm loss"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "holds adapters: give --lora-rank 4 --lora-alpha 16 .*tools/lora.py merge"),
        (("--lora-rank=8", "--lora-alpha=16"), "--lora-rank 4 .*the run has --lora-rank 8"),
    ],
    ids=["without", "rank"],
)
def test_a_run_with_other_adapters_is_refused(pool, setup, saved, flags, said):
    with pytest.raises(AssertionError, match=said):
        pool.run(train, setup.arguments(*flags, f"--load={saved}", steps=6))


def test_adapters_beside_other_weights_are_refused(pool, setup, saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(setup.root, other)
    checksums = other / "release" / "tensor_checksums.json"
    checksums.write_text(checksums.read_text().replace("a", "b"))
    arguments = setup.arguments(*LORA, f"--load={saved}", f"--pretrained-checkpoint={other}")
    with pytest.raises(AssertionError, match=f"trained beside other weights .* of {other}"):
        pool.run(train, arguments)


def test_folders_of_the_other_kind_are_refused(pool, setup, saved, tmp_path):
    arguments = setup.arguments(*LORA, steps=6)
    with pytest.raises(AssertionError, match="holds a whole model, not adapters"):
        shutil.copytree(setup.root, tmp_path / "whole")
        pool.run(train, [*arguments, f"--load={tmp_path / 'whole'}"])
    with pytest.raises(AssertionError, match="adapters without the weights.*tools/lora.py merge"):
        pool.run(train, [*arguments, f"--pretrained-checkpoint={saved}"])
    for flags, folder, said in (
        (LORA, setup.root, "holds whole models, and the run would save adapters"),
        ((), saved, "holds adapters, and the run would save whole models"),
    ):
        saving_there = [f"--save={folder}", "--save-interval=3"]
        with pytest.raises(AssertionError, match=said):
            pool.run(train, setup.arguments(*flags, *saving_there))
