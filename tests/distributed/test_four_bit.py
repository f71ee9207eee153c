"""Runs beside a base in 4 bits: layouts, resuming, what is saved, and `peft` on the same base."""

import numpy as np
import pytest
import torch
from adapter_jobs import four_bit_beside_peft, loaded_logits, merged_logits
from checkpoint_jobs import content
from distributed_jobs import train
from distributed_layouts import Layout, distributed

from megatron_llava.parallel.checkpoint_directory import latest_iteration
from megatron_llava.parallel.shards import compare, keys_of, merge, replica_differences

pytest.importorskip("bitsandbytes")

LORA = ("--lora-rank=4", "--lora-alpha=16", "--lora-dropout=0")
FOUR_BIT = (*LORA, "--load-in-4bit")
DOUBLE = "--bnb-4bit-use-double-quant"
OVERLAPPED = {"distopt": True, "grad_overlap": True, "param_overlap": True}


def arguments(setup, *flags, steps=5):
    return setup.arguments("--adam-eps=1e-4", *flags, model="wide", steps=steps)


@distributed(
    Layout(tp=2),
    Layout(tp=2, sp=True, recompute="uniform"),
    Layout(tp=2, pp=2, sp=True, vpp_layers=1, **OVERLAPPED),
    Layout(cp=2, dp=2, **OVERLAPPED),
)
def test_a_layout_equals_one_rank(pool, setup, layout):
    """A rank's blocks of 64 are blocks of the whole weight here."""
    (expected,) = pool.run(train, arguments(setup, *FOUR_BIT), with_shards=True)
    flags = [*FOUR_BIT, *layout.flags]
    found = pool.run(
        train, arguments(setup, *flags), world_size=layout.world_size, with_shards=True
    )
    for step, reference in zip(found[0]["steps"], expected["steps"], strict=True):
        for name in ("lm loss", "grad norm"):
            assert step[name] == pytest.approx(reference[name], rel=1e-4)
    ranks, one = [rank["shards"] for rank in found], [expected["shards"]]
    keys = keys_of(one)
    assert keys_of(ranks) == keys
    linears = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")
    assert not any(key.startswith("language_model") and key.endswith(linears) for key in keys)
    for key in keys:
        assert not replica_differences(ranks, key)
        difference = compare(key, merge(one, key), merge(ranks, key))
        assert difference is None or difference.relative < 1e-4, str(difference)


def test_losses_are_near_those_of_the_whole_base(pool, setup):
    def losses(*flags):
        steps = pool.run(train, arguments(setup, *LORA, *flags))[0]["steps"]
        return [step["lm loss"] for step in steps]

    whole, four_bit, double = losses(), losses("--load-in-4bit"), losses("--load-in-4bit", DOUBLE)
    assert four_bit != whole and double != four_bit
    assert four_bit == pytest.approx(whole, rel=0.05)
    assert double == pytest.approx(four_bit, rel=0.02)
    assert four_bit[-1] < four_bit[0]


def test_resumed_equals_continuous_and_only_adapters_are_saved(pool, setup, tmp_path):
    """In bfloat16, with dropout, double quantisation and the distributed optimizer."""
    flags = ["--lora-rank=4", "--lora-dropout=0.2", "--load-in-4bit", DOUBLE, "--bf16"]
    flags += ["--tensor-model-parallel-size=2", "--sequence-parallel"]
    flags += ["--use-distributed-optimizer"]
    given = arguments(setup, *flags, steps=6)
    expected = pool.run(train, given, world_size=2, with_shards=True)
    saving = [f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=3"]
    pool.run(train, [*given, *saving, "--exit-interval=3"], world_size=2)
    assert latest_iteration(tmp_path) == 3
    found = pool.run(train, [*given, *saving], world_size=2, with_shards=True)
    assert found[0]["steps"] == expected[0]["steps"][3:]
    for rank in range(2):
        pairs = zip(expected[rank]["shards"], found[rank]["shards"], strict=True)
        assert all(np.array_equal(wanted.array, shard.array) for wanted, shard in pairs)
    (held,) = pool.run(content, tmp_path / "iter_0000003")
    weights = {name for name in held["tensors"] if not name.startswith("optimizer")}
    assert all(
        ".lora." in n or n.split(".")[0] in ("vision_projection", "image_newline") for n in weights
    )


def test_transformers_and_peft_compute_the_same(pool, setup, tmp_path):
    """Their base in 4 bits, and a run's adapters; merging takes the base as it was."""
    run = tmp_path / "run"
    saving = [f"--save={run}", f"--load={run}", "--save-interval=5"]
    pool.run(train, [*arguments(setup, *FOUR_BIT, "--lr=1e-2"), *saving])
    root, hf = setup.checkpoint("wide"), setup.folder / "wide-hf"
    ours, theirs, whole = pool.run(four_bit_beside_peft, run, root, hf, tmp_path / "peft")[0]
    for name, logits in ours.items():
        assert torch.allclose(logits[:, : theirs[name].shape[1]], theirs[name], atol=1e-4), name
        assert (logits - whole[name]).abs().max() > 1e-2, "rounding is seen"
    loaded = pool.run(loaded_logits, run, root, load_in_4bit=True)[0]
    for name, logits in loaded.items():
        assert torch.allclose(logits, ours[name][:, : logits.shape[1]], atol=1e-5), name
    merged = pool.run(merged_logits, run, root, tmp_path / "merged")[0]
    for name, logits in merged.items():
        assert torch.allclose(logits, whole[name], atol=1e-4), name
