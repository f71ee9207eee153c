"""The estimated cost of every part, against the products that a model is seen to compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import mixed_samples, pack, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from megatron_llava.config.training import TUNABLE_PARTS
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.pipeline_balance import place_layers
from megatron_llava.parallel.pipeline_cost import balanced, pipeline_cost

pytestmark = pytest.mark.usefixtures("single_rank")

FULL = {"recompute_granularity": "full", "recompute_num_layers": 1, "recompute_vision": True}
LORA = {"lora_rank": 4, "lora_dropout": 0.0}
TOWER, ADAPTER, LANGUAGE = ("mm_vision_tower",), ("mm_mlp_adapter",), ("mm_language_model",)


def counted(config, batch):
    """FLOPs of the matrix products of one training step; torch does not count CPU attention."""
    from megatron_llava.training.freeze import freeze_parts

    model = tiny_model(config).train()
    freeze_parts(model, config.training.mm_tunable_parts, adapts=config.lora.adapts)
    with FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    return counter.get_total_flops()


def sizes_of(batch, **changes):
    """Without attention between samples' rows, which is not counted."""
    values = {
        "packs": 1,
        "views": batch.num_views,
        "rows": batch.num_rows,
        "attended": 0,
        "loss_rows": len(batch.loss_rows),
    }
    return PackSizes(**{**values, **changes})


def tower_attention(config, views):
    """FLOPs of one forward of the tower's attention: 4 patches and a class token."""
    return config.vision.built_layers * views * 4 * 5**2 * 24


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mm_tunable_parts": LANGUAGE},
        {"mm_tunable_parts": ADAPTER},
        {"mm_tunable_parts": TOWER},
        {"mm_tunable_parts": TOWER + ADAPTER},
        {"mm_tunable_parts": ADAPTER + LANGUAGE},
        {"num_layers": 3, "vision_num_layers": 3},
        LORA,
        {**LORA, "lora_target_modules": ("q_proj", "up_proj")},
        {**FULL, "recompute_method": "uniform", **LORA},
        {**FULL, "recompute_method": "uniform"},
        {**FULL, "recompute_method": "block"},
        {**FULL, "recompute_method": "uniform", "recompute_vision": False},
        {**FULL, "recompute_method": "block", "mm_tunable_parts": ADAPTER},
        {**FULL, "recompute_method": "uniform", "mm_tunable_parts": ADAPTER + LANGUAGE},
        {"mm_projector_type": "linear"},
        {"mm_projector_type": "mlp3x_gelu", "mm_tunable_parts": TOWER},
        {"mm_projector_type": "mlp2x_res2x_gelu", "mm_tunable_parts": ADAPTER},
        {"untie_embeddings_and_output_weights": False},
    ],
    ids=str,
)
def test_the_estimate_is_what_a_model_computes(changes):
    config = tiny_config(**changes)
    batch = pack(config, mixed_samples())
    cost = pipeline_cost(config, sizes_of(batch))
    parts, recompute = config.training.mm_tunable_parts, config.recompute
    forwards = 1
    if "mm_vision_tower" in parts:
        forwards = 4 if recompute.recompute_method == "uniform" else 3
        forwards += 0 if recompute.recompute_vision or forwards == 3 else -1
    attention = forwards * tower_attention(config, batch.num_views)
    if recompute.recompute_method == "block" and "mm_vision_tower" in parts:
        attention += tower_attention(config, batch.num_views) // config.vision.built_layers
    estimated = config.language.num_layers * cost.layer + sum(cost.stages) - attention
    assert counted(config, batch) == estimated


def test_attention_counts_unmasked_scores_and_a_backward_of_twice_that():
    config = tiny_config()
    batch = pack(config, mixed_samples())
    without = pipeline_cost(config, sizes_of(batch)).layer
    # Scores and sums: 2 products of 2 FLOPs over 4 heads of 8, half masked; forward and backward.
    assert pipeline_cost(config, sizes_of(batch, attended=100)).layer - without == 3 * 2 * 100 * 32
    recomputed = tiny_config(recompute_granularity="selective")
    with_one_more = pipeline_cost(recomputed, sizes_of(batch, attended=100)).layer
    assert with_one_more - without == 4 * 2 * 100 * 32


def random_sizes():
    number = st.integers(1, 10**6)
    return st.builds(
        PackSizes, packs=number, views=number, rows=number, attended=number, loss_rows=number
    )


@settings(deadline=None)
@given(random_sizes(), st.sampled_from([(4, 2), (9, 3), (24, 4)]))
def test_freezing_the_tower_gives_the_first_stage_at_least_as_many_layers(sizes, pipeline):
    layers, stages = pipeline
    first = {}
    for parts in (TUNABLE_PARTS, ADAPTER + LANGUAGE, TOWER + ADAPTER, ADAPTER):
        config = tiny_config(
            num_layers=layers, pipeline_model_parallel_size=stages, mm_tunable_parts=parts
        )
        cost = pipeline_cost(config, sizes)
        first[parts] = place_layers(layers, cost.layer, cost.stages)[0]
    assert first[ADAPTER + LANGUAGE] >= first[TUNABLE_PARTS]
    assert first[ADAPTER] >= first[TOWER + ADAPTER]


def test_chunks_of_recomputation_stay_whole():
    changes = {"num_layers": 12, "pipeline_model_parallel_size": 2, **FULL}
    batch = sizes_of(pack(tiny_config(), mixed_samples()), views=10**4)
    uniform = tiny_config(**{**changes, "recompute_method": "uniform", "recompute_num_layers": 3})
    cost = pipeline_cost(uniform, batch)
    assert (cost.multiple, cost.minimum) == (3, 1)
    block = tiny_config(**{**changes, "recompute_method": "block", "recompute_num_layers": 5})
    cost = pipeline_cost(block, batch)
    assert (cost.multiple, cost.minimum) == (1, 5)
    virtual = {"num_virtual_stages_per_pipeline_rank": 2, "recompute_num_layers": 3}
    cost = pipeline_cost(tiny_config(**{**changes, **virtual, "recompute_method": "block"}), batch)
    assert (cost.multiple, cost.minimum) == (2, 6)
    cost = pipeline_cost(
        tiny_config(**{**changes, **virtual, "recompute_method": "uniform"}), batch
    )
    assert (cost.multiple, cost.minimum) == (6, 2)


def test_the_balanced_configuration_and_what_is_said_of_it():
    config = tiny_config(num_layers=8, pipeline_model_parallel_size=4, pipeline_balance="auto")
    sizes = PackSizes(packs=2, views=80, rows=600, attended=40000, loss_rows=100)
    placed, message = balanced(config, sizes)
    cost = pipeline_cost(config, sizes)
    placement = place_layers(8, cost.layer, cost.stages)
    parallel = placed.parallel
    assert parallel.decoder_first_pipeline_num_layers == placement[0] < 2
    assert parallel.decoder_last_pipeline_num_layers == placement[-1]
    assert placed.explicit == config.explicit
    listed = ", ".join(str(count) for count in placement)
    assert f"auto: {listed} of 8 layers on pipeline stages 0 to 3" in message
    assert "packs of 40.0 views, 300 rows and 50 rows with a loss" in message
    total = cost.layer * 8 + sum(cost.stages)
    share = 100 * (placement[0] * cost.layer + cost.stages[0]) / total
    assert f", {share:.1f}, " in message and "\n" not in message
    assert balanced(config, sizes)[1] == message


def test_of_two_stages_the_last_has_the_rest():
    """Given both, core divides by the stages between them, of which there are none."""
    config = tiny_config(num_layers=8, pipeline_model_parallel_size=2, pipeline_balance="auto")
    sizes = PackSizes(packs=2, views=80, rows=600, attended=40000, loss_rows=100)
    placed, _ = balanced(config, sizes)
    assert placed.parallel.decoder_first_pipeline_num_layers is not None
    assert placed.parallel.decoder_last_pipeline_num_layers is None


def test_torch_counts_no_attention_on_cpu():
    """What the comparison with the counter rests on."""
    query = torch.randn(1, 1, 4, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    assert counter.get_total_flops() == 0
