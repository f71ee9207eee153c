"""Placement of layers: as good as any that core accepts, and never moved the wrong way."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_llava.parallel.pipeline_balance import place_layers, slowest_stage

pytestmark = pytest.mark.usefixtures("cpu_platform")

COSTS = st.integers(0, 10**15)


@st.composite
def pipelines(draw):
    """(layers, cost of a layer, costs of the stages besides)."""
    stages = draw(st.integers(2, 6))
    layers = draw(st.integers(stages, 40))
    own = [draw(COSTS), *[0] * (stages - 2), draw(COSTS)]
    return layers, draw(st.integers(1, 10**13)), own


def valid_placements(layers, stages):
    """Every (first, middle..., last) with a layer for each, by trying all."""
    for first in range(1, layers):
        for last in range(1, layers - first + 1):
            rest, between = layers - first - last, stages - 2
            if between == 0 and rest == 0:
                yield (first, last)
            elif between and rest and rest % between == 0:
                yield (first, *[rest // between] * between, last)


@given(pipelines())
def test_no_valid_placement_is_better(pipeline):
    layers, layer_cost, own = pipeline
    found = place_layers(layers, layer_cost, own)
    valid = list(valid_placements(layers, len(own)))
    assert found in valid
    assert slowest_stage(found, layer_cost, own) == min(
        slowest_stage(placement, layer_cost, own) for placement in valid
    )


@given(pipelines())
def test_never_worse_than_even_and_even_where_nothing_else_costs(pipeline):
    layers, layer_cost, own = pipeline
    assume(layers % len(own) == 0)
    even = (layers // len(own),) * len(own)
    found = place_layers(layers, layer_cost, own)
    assert slowest_stage(found, layer_cost, own) <= slowest_stage(even, layer_cost, own)
    assert place_layers(layers, layer_cost, [0] * len(own)) == even


@given(pipelines(), st.integers(1, 10**15))
def test_a_dearer_end_never_gets_more_layers(pipeline, more):
    layers, layer_cost, own = pipeline
    placement = place_layers(layers, layer_cost, own)
    dearer = place_layers(layers, layer_cost, [own[0] + more, *own[1:]])
    assert dearer[0] <= placement[0]
    dearer = place_layers(layers, layer_cost, [*own[:-1], own[-1] + more])
    assert dearer[-1] <= placement[-1]


@given(pipelines(), st.integers(1, 4), st.integers(1, 3))
def test_multiples_and_minima_are_kept(pipeline, multiple, minimum):
    layers, layer_cost, own = pipeline
    least = -(-minimum // multiple) * multiple
    if layers % multiple or layers < least * len(own):
        with pytest.raises(ValueError, match=f"{layers} layers cannot be placed on {len(own)}"):
            place_layers(layers, layer_cost, own, multiple=multiple, minimum=minimum)
        return
    found = place_layers(layers, layer_cost, own, multiple=multiple, minimum=minimum)
    assert sum(found) == layers and len(set(found[1:-1])) <= 1
    assert min(found) >= minimum and all(count % multiple == 0 for count in found)


def test_the_same_placement_for_mirrored_ties():
    # Three layers on two equal stages: one of them has two, always the same one.
    assert place_layers(3, 5, [0, 0]) == (1, 2)


@settings(deadline=None)
@given(pipelines(), st.sampled_from([None, 2]))
def test_core_builds_the_placement(pipeline, virtual):
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    layers, layer_cost, own = pipeline
    chunks = virtual or 1
    layers *= chunks
    placement = place_layers(layers, layer_cost, own, multiple=chunks)
    config = TransformerConfig(
        num_layers=layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=len(own),
        virtual_pipeline_model_parallel_size=virtual,
        num_layers_in_first_pipeline_stage=placement[0],
        num_layers_in_last_pipeline_stage=placement[-1] if len(own) > 2 else None,
        pipeline_dtype=torch.float32,
    )
    seen = []
    for rank, count in enumerate(placement):
        for stage in range(chunks):
            built = get_num_layers_to_build(config, vp_stage=stage, pp_rank=rank)
            assert built * chunks == count
            offset = get_transformer_layer_offset(config, vp_stage=stage, pp_rank=rank)
            seen.extend(range(offset, offset + built))
    assert sorted(seen) == list(range(layers))
