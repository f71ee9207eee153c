"""Every byte that a training step sends was predicted from the settings."""

import pytest
from communication_jobs import predicted_and_counted

TP2, PP2 = "--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"
CP2, SP, DATA = "--context-parallel-size=2", "--sequence-parallel", "--vision-parallel=data"
DISTRIBUTED = "--use-distributed-optimizer"
OVERLAPS = [DISTRIBUTED, "--overlap-grad-reduce", "--overlap-param-gather"]
FULL = ["--recompute-granularity=full", "--recompute-num-layers=1", "--recompute-vision"]
PARTS = "--mm-tunable-parts=mm_mlp_adapter"
CROSS_IMAGE, LANGUAGE = "--cross-image-attention", "--mm-tunable-parts=mm_language_model"
ALIGN = [PARTS, "--align-loss-coeff=1"]
LORA = "--lora-rank=4"
UNIFORM = [*FULL, "--recompute-method=uniform"]

LAYOUTS = {
    "tp2": (2, [TP2], {"tensor-parallel"}),
    "tp2-sp": (2, [TP2, SP], {"tensor-parallel"}),
    "tp2-vision-data": (2, [TP2, DATA], {"tensor-parallel", "shared views"}),
    "tp2-frozen": (2, [TP2, SP, PARTS], {"tensor-parallel"}),
    "tp2-recompute": (2, [TP2, SP, *UNIFORM], {"tensor-parallel"}),
    "tp2-images": (2, [TP2, CROSS_IMAGE], {"tensor-parallel"}),
    "tp2-images-frozen": (2, [TP2, CROSS_IMAGE, LANGUAGE], {"tensor-parallel"}),
    "tp2-align": (2, [TP2, SP, *ALIGN], {"tensor-parallel"}),
    "tp2-align-alone": (2, [TP2, SP, *ALIGN, "--text-loss-coeff=0"], {"tensor-parallel"}),
    "cp2-align": (2, [CP2, *ALIGN], {"context-parallel", "data-parallel"}),
    "pp2": (2, [PP2], {"pipeline"}),
    "pp2-virtual": (2, [PP2, "--num-virtual-stages-per-pipeline-rank=2"], {"pipeline"}),
    "dp2": (2, [], {"data-parallel"}),
    "dp2-distributed-optimizer": (2, [DISTRIBUTED], {"data-parallel"}),
    "dp2-buckets": (2, [*OVERLAPS, "--ddp-bucket-size=20000"], {"data-parallel"}),
    "dp2-bf16": (2, ["--bf16", DISTRIBUTED], {"data-parallel"}),
    "cp2": (2, [CP2], {"context-parallel", "data-parallel"}),
    "cp2-recompute": (
        2,
        [CP2, "--recompute-activations"],
        {"context-parallel", "data-parallel"},
    ),
    "tp2-pp2-block": (
        4,
        [TP2, SP, PP2, *FULL, "--recompute-method=block"],
        {"tensor-parallel", "pipeline"},
    ),
    "tp2-adapters": (2, [TP2, LORA], {"tensor-parallel"}),
    "tp2-some-adapters": (
        2,
        [TP2, LORA, "--lora-target-modules=q_proj,down_proj"],
        {"tensor-parallel"},
    ),
    "tp2-sp-dp2-adapters": (
        4,
        [TP2, SP, LORA, *UNIFORM, DISTRIBUTED, "--bf16"],
        {"tensor-parallel", "data-parallel"},
    ),
    "cp2-tp2": (
        4,
        [CP2, TP2, SP, DATA, DISTRIBUTED],
        {"context-parallel", "tensor-parallel", "data-parallel", "shared views"},
    ),
}


def check(results, expected):
    for rank, result in enumerate(results):
        assert result["counted"] == result["predicted"], rank
        assert result["small"] < 500
    assert {who for result in results for who, _ in result["counted"]} == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_counted_was_predicted(pool, setup, layout):
    world_size, flags, expected = LAYOUTS[layout]
    check(pool.run(predicted_and_counted, setup.arguments(*flags), world_size=world_size), expected)


def test_tied_embeddings_on_two_stages(pool, setup):
    """The two copies of the embedding have a bucket of their own in the distributed optimizer."""
    arguments = setup.arguments(PP2, DISTRIBUTED, model="tied")
    results = pool.run(predicted_and_counted, arguments, world_size=4)
    check(results, {"pipeline", "tied embeddings", "data-parallel"})
