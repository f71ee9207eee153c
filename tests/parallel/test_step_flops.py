"""FLOPs of a step: by part against the sum that balances pipelines (which is tested against torch's
counter), and all of it against the rule of six."""

import pytest
from tiny_model import tiny_config

from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import TUNABLE_PARTS
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.pipeline_cost import pipeline_cost
from megatron_llava.parallel.step_flops import step_flops
from megatron_llava.parallel.trained import trained

SIZES = PackSizes(packs=2, views=80, rows=600, attended=40_000, loss_rows=100)
FULL = {"recompute_granularity": "full", "recompute_num_layers": 1, "recompute_vision": True}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mm_tunable_parts": ("mm_mlp_adapter",)},
        {"mm_tunable_parts": ("mm_vision_tower", "mm_language_model")},
        {**FULL, "recompute_method": "uniform"},
        {"recompute_granularity": "selective", "recompute_vision": True},
        {"num_layers": 6, "pipeline_model_parallel_size": 3},
        {"lora_rank": 4, "mm_tunable_parts": ("mm_mlp_adapter", "mm_language_model")},
    ],
    ids=str,
)
def test_the_parts_add_up_to_what_the_stages_cost(changes):
    config = tiny_config(**changes)
    cost, flops = pipeline_cost(config, SIZES), step_flops(config, SIZES, trained(config))
    total = config.language.num_layers * cost.layer + sum(cost.stages)
    assert flops.useful + flops.recomputed == total
    on_each = config.language.num_layers // config.parallel.pipeline_model_parallel_size
    assert flops.slowest_stage == max(on_each * cost.layer + own for own in cost.stages)
    assert (flops.recomputed > 0) == ("recompute_granularity" in changes)


def test_block_recomputation_repeats_some_layers_of_each_stage():
    changes = {**FULL, "recompute_method": "block", "num_layers": 6}
    config = tiny_config(**changes, pipeline_model_parallel_size=2)
    block = step_flops(config, SIZES, trained(config)).parts["decoder"]
    every = tiny_config(**{**changes, "recompute_method": "uniform"})
    whole = step_flops(every, SIZES, trained(every)).parts["decoder"]
    assert block.recomputed * 6 == whole.recomputed * 2


@pytest.mark.parametrize("frozen", TUNABLE_PARTS)
def test_what_is_frozen_has_no_gradients_of_weights(frozen):
    everything = tiny_config()
    parts = tuple(part for part in TUNABLE_PARTS if part != frozen)
    some = tiny_config(mm_tunable_parts=parts)
    more = step_flops(everything, SIZES, trained(everything))
    less = step_flops(some, SIZES, trained(some))
    assert less.useful < more.useful
    assert less.parts["vision tower"].forward == more.parts["vision tower"].forward
    if frozen == "mm_vision_tower":
        assert less.parts["vision tower"].backward == 0


def test_an_alignment_alone_leaves_out_the_decoder_where_the_model_does():
    """A stage that has only some layers cannot."""
    aligns = {"align_loss_coeff": 1.0, "text_loss_coeff": 0.0}
    changes = {**aligns, "mm_tunable_parts": ("mm_mlp_adapter",)}
    alone, stages = tiny_config(**changes), tiny_config(**changes, pipeline_model_parallel_size=2)
    flops, staged = (step_flops(c, SIZES, trained(c)) for c in (alone, stages))
    assert flops.parts["decoder"].total == flops.parts["output layer"].total == 0
    assert all(flops.parts[part].total > 0 for part in ("vision tower", "projector"))
    assert staged.parts["decoder"].total > 0 and staged.parts["output layer"].total > 0


def test_six_flops_a_token_and_parameter():
    config = fill_named_model(RunConfig(), "llava-next-vicuna-7b")
    sizes = PackSizes(packs=1, views=1, rows=10_000, attended=0, loss_rows=10_000)
    parts = step_flops(config, sizes, trained(config)).parts
    language = parts["decoder"].total + parts["output layer"].total
    # Of the language model all but the embedding, a lookup, and the norms.
    parameters = 6_738_415_616 - 32_000 * 4096
    assert language == pytest.approx(6 * parameters * 10_000, rel=1e-3)
