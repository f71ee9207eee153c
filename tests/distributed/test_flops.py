"""The FLOPs of the log, against every product that torch computes in a training run.

Left out on both sides: lookups, norms, activations and the optimizer; the masked half of causal
attention, and what its backward computes again by itself.
"""

import pytest
from flop_jobs import count_flops

LORA = ["--lora-rank=4", "--lora-target-modules=q_proj,up_proj"]
CROSS_IMAGE = "--cross-image-attention"
ALIGN = ["--mm-tunable-parts=mm_mlp_adapter", "--align-loss-coeff=1"]
FULL = ["--recompute-granularity=full", "--recompute-num-layers=1"]
UNIFORM = [*FULL, "--recompute-method=uniform"]
RUNS = {
    "all": ([], False),
    "language": (["--mm-tunable-parts=mm_language_model"], False),
    "projector": (["--mm-tunable-parts=mm_mlp_adapter"], False),
    "adapters": (LORA, False),
    "selective-vision": (["--recompute-activations", "--recompute-vision"], True),
    "uniform": ([*UNIFORM, "--recompute-vision"], True),
    "block": ([*FULL, "--recompute-method=block", "--recompute-vision"], True),
    "uniform-adapters": ([*UNIFORM, *LORA], True),
    "images": ([CROSS_IMAGE], False),
    "images-tower": ([CROSS_IMAGE, "--mm-tunable-parts=mm_vision_tower"], False),
    "images-frozen": ([CROSS_IMAGE, "--mm-tunable-parts=mm_language_model"], False),
    "align": ([*ALIGN], False),
    "align-token": ([*ALIGN, "--align-loss-pooling=token"], False),
    "align-alone": ([*ALIGN, "--text-loss-coeff=0"], False),
}


@pytest.mark.parametrize("model", ["dinov2", "aimv2-native"])
@pytest.mark.parametrize("flags", [[], [*UNIFORM, "--recompute-vision"]], ids=["plain", "uniform"])
def test_the_log_knows_the_layers_of_other_towers(pool, setup, model, flags):
    arguments = setup.arguments(*flags, model=model, steps=3, batch=2)
    ((counted, useful, recomputed),) = pool.run(count_flops, arguments)
    assert counted == useful + recomputed


@pytest.mark.parametrize("run", RUNS)
def test_the_log_says_what_was_computed(pool, setup, run):
    flags, recomputes = RUNS[run]
    arguments = setup.arguments(*flags, steps=3, batch=2)
    ((counted, useful, recomputed),) = pool.run(count_flops, arguments)
    assert counted == useful + recomputed
    assert (recomputed > 0) == recomputes


@pytest.mark.parametrize(
    ("flags", "nearly"),
    [
        (["--use-distributed-optimizer"], 0),
        # The projector leaves out features that no position uses.
        (["--tensor-model-parallel-size=2", "--vision-parallel=data"], 0.002),
    ],
    ids=str,
)
def test_ranks_share_what_one_would_compute(pool, setup, flags, nearly):
    arguments = setup.arguments(*UNIFORM, *flags, steps=3, batch=2)
    found = pool.run(count_flops, arguments, world_size=2)
    (_, useful, recomputed), other = found
    assert other[1:] == (useful, recomputed)
    total = sum(rank[0] for rank in found)
    assert total == pytest.approx(useful + recomputed, rel=nearly, abs=0)
