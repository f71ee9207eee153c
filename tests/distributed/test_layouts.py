"""Every parallel layout trains as one rank does: losses, gradient norms and every parameter.

A representative dozen runs always; ``bash tests/run.sh -m grid`` runs every row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from distributed_jobs import train
from distributed_layouts import (
    COMMON,
    DISTRIBUTED,
    OVERLAPPED,
    Layout,
    assert_same_parameters,
    assert_same_steps,
    distributed,
)

from megatron_llava.parallel.shards import compare, keys_of, merge, replica_differences

# A window of one sample makes every sample a pack: a quarter of them has no image.
ONE_SAMPLE_PACKS = "--packing-window=1"
FROZEN_TOWER = "--mm-tunable-parts=mm_mlp_adapter,mm_language_model"
# Columns that pad the vocabulary make the output layer dear, and change nothing else.
WIDE_OUTPUT = "--make-vocab-size-divisible-by=65536"
PROJECTOR_ONLY = "--mm-tunable-parts=mm_mlp_adapter"
# The alignment loss, heavy enough to be seen beside the text's.
ALIGN = (PROJECTOR_ONLY, "--align-loss-coeff=3e3")
FP16 = ("--fp16", "--initial-loss-scale=256", "--accumulate-allreduce-grads-in-fp32")
LANGUAGE_ONLY = "--mm-tunable-parts=mm_language_model"
# Learned rows that the starting checkpoint lacks.
IMAGE_ROWS = ("--image-start-end", "--image-separator", "--tile-position-embedding")
CROSS_IMAGE = "--cross-image-attention"
LARGEST_OF_CANVAS = "--mm-patch-merge-type=spatial_unpad_maxpool2x2"
LARGEST_OF_VIEWS = ("--image-pool-stride=2", "--mm-spatial-pool-mode=max")
BLOCKS = {"recompute": "block", "recompute_vision": True}
# Adapters: the embedding, and with it the input of the first layer, does not learn.
LORA = ("--lora-rank=4", "--lora-alpha=16", "--lora-dropout=0")
WITH_TOWER = "--mm-tunable-parts=mm_mlp_adapter,mm_vision_tower,mm_language_model"
QUERY_AND_UP = "--lora-target-modules=q_proj,up_proj"


@dataclass(frozen=True)
class Row:
    """A layout, and flags that change the result, which its reference on one rank has as well."""

    layout: Layout
    flags: tuple[str, ...] = ()
    model: str = "plain"
    always: bool = False

    def __str__(self) -> str:
        words = [flag.removeprefix("--").split("=")[-1] for flag in self.flags]
        return "-".join(
            [str(self.layout), *words, *([] if self.model == "plain" else [self.model])]
        )


def row(*flags: str, model: str = "plain", **layout: object) -> Row:
    """A row of the whole grid."""
    return Row(Layout(**layout), flags, model)


def always(*flags: str, model: str = "plain", **layout: object) -> Row:
    """A row that runs in every test run: each part of the engine is in some."""
    return replace(row(*flags, model=model, **layout), always=True)


ROWS = [
    # Each kind of parallelism alone.
    row(tp=2),
    row(tp=2, sp=True),
    row(tp=4),
    always(tp=4, sp=True),
    row(tp=8),
    row(tp=8, sp=True),
    row(pp=2),
    row(pp=4),
    row(pp=2, first=1),
    row(pp=2, last=1),
    row(pp=3, first=1, last=1),
    row(WIDE_OUTPUT, pp=2, balance="auto"),
    row(pp=3, balance="auto"),
    row(cp=2),
    always(cp=4),
    row(cp=8),
    row(dp=2),
    row(dp=4),
    always(dp=8, **OVERLAPPED),
    row(dp=2, **DISTRIBUTED),
    row(dp=4, **DISTRIBUTED),
    row(dp=2, grad_overlap=True),
    row(dp=2, grad_overlap=True, bucket=20_000),
    row(dp=2, distopt=True, grad_overlap=True),
    row(dp=2, **OVERLAPPED),
    # Virtual pipeline stages.
    row(pp=2, vpp_layers=1),
    row(pp=2, vpp_layers=2, model="deep"),
    row(pp=2, vpp_layers=1, model="deep"),
    row(pp=2, virtual_stages=2, first=2, model="deep"),
    always(pp=4, vpp_layers=1, model="deep"),
    row(pp=4, vpp_layers=1, no_p2p_overlap=True, model="deep"),
    row(pp=4, dp=2, vpp_layers=1, **OVERLAPPED, model="deep"),
    row(tp=2, pp=2, dp=2, vpp_layers=1, sp=True, **OVERLAPPED),
    # The vision tower whole on every tensor-parallel rank.
    row(tp=2, vision="data"),
    row(tp=4, sp=True, vision="data"),
    row(tp=8, vision="data"),
    row(tp=2, pp=2, vision="data"),
    row(tp=2, dp=2, sp=True, vision="data", **OVERLAPPED),
    row(tp=2, sp=True, vision="data", recompute="uniform", recompute_vision=True),
    # Recomputation.
    row(recompute="selective"),
    row(recompute="selective", recompute_vision=True),
    row(recompute="uniform"),
    row(recompute="uniform", recompute_vision=True),
    row(recompute="block"),
    row(**BLOCKS),
    row(tp=2, sp=True, recompute="selective", recompute_vision=True),
    always(tp=2, sp=True, recompute="uniform", recompute_vision=True),
    row(pp=2, dp=2, **BLOCKS, **OVERLAPPED),
    row(cp=2, recompute="selective", recompute_vision=True),
    row(cp=2, pp=2, vpp_layers=1, **BLOCKS),
    # Mixtures.
    row(tp=2, pp=2),
    row(tp=2, dp=2),
    row(pp=2, dp=2),
    row(cp=2, tp=2),
    row(cp=2, tp=2, sp=True),
    row(cp=4, tp=2, sp=True),
    row(cp=2, tp=4, sp=True, vision="data"),
    row(cp=2, pp=2),
    row(cp=2, dp=2, **OVERLAPPED),
    row(cp=2, dp=4, **DISTRIBUTED),
    row(cp=2, tp=2, dp=2, sp=True, **OVERLAPPED),
    row(cp=2, tp=2, pp=2, vpp_layers=1, sp=True),
    row(cp=2, tp=2, pp=2, vision="data", **BLOCKS),
    always(tp=2, pp=2, dp=2, sp=True, **OVERLAPPED),
    row(tp=2, pp=2, dp=2, **DISTRIBUTED, **BLOCKS),
    row(tp=4, pp=2, sp=True),
    row(tp=2, pp=4, sp=True, **DISTRIBUTED),
    row(tp=4, dp=2, sp=True, **OVERLAPPED),
    row(pp=4, dp=2, **OVERLAPPED),
    # Embeddings that the first and the last stage share; Qwen2 over SigLIP, with biases in QKV.
    row(model="tied", tp=2, sp=True),
    row(model="tied", pp=2),
    row(model="tied", dp=2, **OVERLAPPED),
    row(model="tied", cp=2, tp=2, vision="data"),
    row(model="tied", cp=2, pp=2, dp=2, **OVERLAPPED),
    always(model="tied", tp=2, pp=2, vpp_layers=1, dp=2, sp=True, **OVERLAPPED),
    row(model="tied", pp=4, dp=2, **DISTRIBUTED),
    # Towers that transformers computes.
    row(model="dinov2", pp=2),
    always(model="dinov2", tp=2, dp=2, sp=True, vision="data", **BLOCKS, **OVERLAPPED),
    row(model="dinov2", cp=2, tp=2, vision="data", recompute="uniform", recompute_vision=True),
    row("--bf16", model="dinov2", tp=2, pp=2, vision="data"),
    row(FROZEN_TOWER, model="dinov2", dp=2, **OVERLAPPED),
    row(model="aimv2-native", dp=2, **OVERLAPPED),
    row(ONE_SAMPLE_PACKS, model="aimv2-native", tp=2, pp=2, vision="data"),
    # Packs without images, on some ranks of a step and not on others.
    row(ONE_SAMPLE_PACKS, dp=2, **OVERLAPPED),
    always(ONE_SAMPLE_PACKS, cp=2, tp=2, dp=2, sp=True, vision="data", **OVERLAPPED),
    row(ONE_SAMPLE_PACKS, pp=2, dp=2, **OVERLAPPED),
    row(ONE_SAMPLE_PACKS, cp=4, pp=2, vpp_layers=1),
    row(ONE_SAMPLE_PACKS, tp=2, pp=2, recompute="uniform", recompute_vision=True),
    # Parts that do not learn, so that stages and ranks have no gradient at all.
    row(FROZEN_TOWER, tp=2, pp=2),
    row(FROZEN_TOWER, cp=2, pp=2, vpp_layers=1),
    always(FROZEN_TOWER, tp=2, dp=2, sp=True, vision="data", **OVERLAPPED),
    always(PROJECTOR_ONLY, tp=2, pp=2),
    row(PROJECTOR_ONLY, pp=2, dp=2, **DISTRIBUTED),
    row(PROJECTOR_ONLY, cp=2, dp=2, **OVERLAPPED),
    row(LANGUAGE_ONLY, tp=2, pp=2, sp=True),
    row(LANGUAGE_ONLY, cp=2, tp=2, vision="data"),
    row("--mm-tunable-parts=mm_mlp_adapter,mm_vision_tower", tp=2, pp=2),
    row("--mm-tunable-parts=mm_mlp_adapter,mm_vision_tower", cp=2, pp=2, dp=2, **DISTRIBUTED),
    # The alignment loss of stage 1, whose gradient begins on the first stage.
    always(*ALIGN, cp=2, pp=2),
    row(*ALIGN, cp=2, pp=2, dp=2, **OVERLAPPED),
    row(*ALIGN, tp=2, sp=True, dp=2),
    row(*ALIGN, "--align-loss-pooling=token", tp=2, pp=2, vision="data"),
    row(*ALIGN, "--text-loss-coeff=0", pp=2),
    row(*ALIGN, "--text-loss-coeff=0", "--loss-reduction=sample", cp=4, dp=2, **DISTRIBUTED),
    row(*ALIGN, "--loss-reduction=microbatch-mean", cp=2, pp=2, vpp_layers=1),
    # Learned rows among the tokens of images and added to their tiles.
    always(*IMAGE_ROWS, cp=2, tp=2, sp=True, vision="data"),
    row(*IMAGE_ROWS, pp=2, dp=2, **OVERLAPPED),
    row("--tile-position-embedding", cp=2, dp=2),
    # Tokens that are the largest of some features, which lie on other ranks.
    always(*LARGEST_OF_VIEWS, cp=2, tp=2, vision="data"),
    row(LARGEST_OF_CANVAS, cp=2, pp=2, dp=2, **OVERLAPPED),
    # Attention between the images of a sample.
    always(CROSS_IMAGE, tp=2, pp=2),
    row(CROSS_IMAGE, tp=4, sp=True, dp=2, **OVERLAPPED),
    row(CROSS_IMAGE, PROJECTOR_ONLY, pp=2, dp=2, vpp_layers=1, **OVERLAPPED),
    # Adapters; four ranks split the rows of a key-value group.
    row(*LORA, tp=2),
    row(*LORA, pp=2),
    row(*LORA, tp=4),
    always(*LORA, tp=4, sp=True),
    row(*LORA, WITH_TOWER, cp=2, tp=2, vision="data"),
    always(*LORA, tp=2, pp=2, dp=2, sp=True, vpp_layers=1, recompute="uniform", **OVERLAPPED),
    row(*LORA, model="tied", tp=2, pp=2, dp=2, **DISTRIBUTED),
    row(*LORA, QUERY_AND_UP, tp=4, pp=2),
    row(*LORA, LANGUAGE_ONLY, tp=2, pp=2, sp=True, recompute="uniform"),
    row(*LORA, "--bf16", tp=2, sp=True),
    # Losses that are not a mean over all tokens.
    row("--loss-reduction=sample", tp=2, pp=2, dp=2),
    row("--loss-reduction=sample", cp=2, dp=2),
    row("--loss-reduction=microbatch-mean", tp=2, pp=2, dp=2),
    row("--loss-reduction=microbatch-mean", cp=2, dp=2),
    # bfloat16.
    row("--bf16", tp=2, sp=True),
    row("--bf16", pp=2, vpp_layers=1),
    row("--bf16", cp=2, tp=2, vision="data"),
    always("--bf16", cp=2, tp=2, dp=2, sp=True, **OVERLAPPED),
    row("--bf16", "--grad-reduce-in-bf16", dp=2, **OVERLAPPED),
    row("--bf16", model="tied", tp=2, pp=2, sp=True),
    # float16.
    row(*FP16, tp=2, sp=True),
    row(*FP16, pp=2, dp=2, **OVERLAPPED),
    row(*FP16, *ALIGN, "--align-loss-coeff=3", cp=2, pp=2),
]


def parameters_of_grid() -> list:
    """Every row under the mark ``grid``; those that do not run always are ``exhaustive`` too."""
    marked = []
    for entry in ROWS:
        marks = [pytest.mark.grid, *([] if entry.always else [pytest.mark.exhaustive])]
        marked.append(pytest.param(entry, id=str(entry), marks=marks))
    return marked


@pytest.mark.proves("D7", "D17", "D18")
@pytest.mark.parametrize("entry", parameters_of_grid())
def test_a_layout_equals_one_rank(pool, setup, one_rank, entry):
    flags = (*COMMON, *entry.flags)
    expected = one_rank(*flags, model=entry.model, batch=8)
    arguments = setup.arguments(*flags, *entry.layout.flags, model=entry.model, batch=8)
    results = pool.run(train, arguments, world_size=entry.layout.world_size, with_shards=True)
    tolerance = 2e-2 if {"--bf16", "--fp16"} & set(entry.flags) else 1e-4
    assert_same_steps(results[0]["steps"], expected["steps"], tolerance)
    assert_same_parameters([rank["shards"] for rank in results], expected["shards"], tolerance)


def test_training_moves_every_parameter(setup, one_rank):
    """So that the comparison of parameters means something: ten times its tolerance."""
    start = one_rank(*COMMON, "--lr=1e-12", batch=8)["shards"]
    end = one_rank(*COMMON, batch=8)["shards"]
    for key in keys_of([end]):
        moved = compare(key, merge([start], key), merge([end], key))
        assert moved is not None and moved.relative > 1e-3, str(moved)


@distributed(Layout(tp=2), Layout(tp=2, sp=True, recompute="uniform"))
def test_ranks_agree_on_what_adapters_leave_out(pool, setup, layout):
    """Masks differ with the layout, but not between ranks that hold the same weights."""
    flags = ("--lora-rank=4", "--lora-dropout=0.3", *layout.flags)
    results = pool.run(train, setup.arguments(*flags), world_size=2, with_shards=True)
    ranks = [result["shards"] for result in results]
    assert not any(replica_differences(ranks, key) for key in keys_of(ranks))
    losses = [step["lm loss"] for step in results[0]["steps"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("layout", "flags", "expected"),
    [
        (Layout(pp=2, balance="auto"), [WIDE_OUTPUT], [3, 1]),
        (Layout(pp=3, balance="auto"), [], [1, 2, 1]),
    ],
)
def test_a_run_builds_the_balanced_stages(pool, setup, layout, flags, expected):
    arguments = setup.arguments(*flags, *layout.flags, steps=3)
    results = pool.run(train, arguments, world_size=layout.world_size, with_shards=True)
    block = "language_model.decoder.layers."
    for result, layers in zip(results, expected, strict=True):
        keys = [key for key in keys_of([result["shards"]]) if block in key]
        assert len({key.split(block)[1].split(".")[0] for key in keys}) == layers
        (message,) = [text for text in result["messages"] if "--pipeline-balance" in text]
        assert f"{str(expected)[1:-1]} of 4 layers" in message


def test_losses_fall(one_rank):
    steps = one_rank()["steps"]
    assert steps[-1]["lm loss"] < 0.95 * steps[0]["lm loss"]


def test_bfloat16_stays_near_float32(one_rank):
    assert_same_steps(one_rank("--bf16")["steps"], one_rank()["steps"], 3e-2)


@pytest.mark.parametrize("reduction", ["sample", "microbatch-mean"])
def test_other_reductions_of_the_loss_are_others(one_rank, reduction):
    # Not the first step: all of its samples may have as many labels.
    found = one_rank(f"--loss-reduction={reduction}")["steps"][-1]["lm loss"]
    assert found != pytest.approx(one_rank()["steps"][-1]["lm loss"], rel=1e-4)


@distributed(Layout(tp=2, pp=2), Layout(dp=4, **OVERLAPPED))
def test_the_held_out_loss_is_the_same_at_every_layout(pool, setup, one_rank, layout):
    flags = [f"--valid-data-path={setup.store}", "--eval-interval=5"]
    expected = one_rank(*flags)["validations"]
    assert len(expected) == 1
    arguments = setup.arguments(*flags, *layout.flags)
    result = pool.run(train, arguments, world_size=layout.world_size)
    assert result[0]["validations"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.proves("A5")
def test_a_run_says_which_meaning_nobase_has(pool, setup):
    def said(*flags):
        messages = pool.run(train, setup.arguments(*flags, steps=3))[0]["messages"]
        return [text for text in messages if "nobase" in text]

    (message,) = said("--image-aspect-ratio=nobase")
    assert "without a view of the whole image" in message
    assert "--image-aspect-ratio square" in message
    assert said() == []


@pytest.mark.proves("C12")
def test_steps_of_a_run_are_of_one_modality_and_go_on_exactly(pool, setup, tmp_path):
    """Packs of one sample: 48 with an image and 16 without are 12 and 4 whole batches."""
    flags = ("--group-by-modality-length", "--packing-window=1", "--balance-packs=8")

    def run(*more, world_size=1):
        arguments = setup.arguments(*flags, *more, steps=16)
        return pool.run(train, arguments, world_size=world_size)[0]["steps"]

    whole = run()
    assert sorted(step["kinds"] for step in whole) == [(0, 4, 0, 0)] * 12 + [(4, 0, 0, 0)] * 4
    where = (f"--load={tmp_path}", f"--save={tmp_path}", "--save-interval=6")
    first = run(*where, "--exit-interval=6", world_size=2)
    then = run(*where)
    assert [step["kinds"] for step in first + then] == [step["kinds"] for step in whole]
    losses = [step["lm loss"] for step in first + then]
    assert losses == pytest.approx([step["lm loss"] for step in whole], rel=1e-4)
