"""Which parameters learn, and what the others are spared."""

from itertools import combinations

import pytest
import torch
from tiny_model import tiny_config

from megatron_llava.config.training import TUNABLE_PARTS

pytestmark = pytest.mark.usefixtures("single_rank")

SUBSETS = [parts for count in (1, 2, 3) for parts in combinations(TUNABLE_PARTS, count)]


@pytest.fixture(scope="module")
def model(single_rank):
    from megatron_llava.models.build import build_llava_model

    return build_llava_model(tiny_config())


def names_of(part, model):
    """The parameters of a part, by the module that holds them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tower = {names.pop(id(parameter)) for parameter in model.vision_model.parameters()}
    projector = {names.pop(id(parameter)) for parameter in model.vision_projection.parameters()}
    rest = set(names.values())
    return {"mm_vision_tower": tower, "mm_mlp_adapter": projector, "mm_language_model": rest}[part]


@pytest.mark.parametrize("part", TUNABLE_PARTS)
def test_every_parameter_belongs_to_the_part_of_its_module(model, part):
    from megatron_llava.config.training import part_of

    found = {name for name, _ in model.named_parameters() if part_of(name) == part}
    assert found == names_of(part, model)
    assert found


def test_the_language_model_takes_what_is_neither_tower_nor_projector(model):
    language = names_of("mm_language_model", model)
    assert "image_newline" in language
    assert any("word_embeddings" in name for name in language)
    assert any("output_layer" in name for name in language)


@pytest.mark.proves("D5")
@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_exactly_the_named_parts_learn(model, parts):
    from megatron_llava.training.freeze import freeze_parts

    # Each subset follows on another one: what was frozen before must learn again.
    freeze_parts(model, parts)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == set().union(*(names_of(part, model) for part in parts))


@pytest.mark.proves("D1", "D4", "D5")
@pytest.mark.parametrize("part", TUNABLE_PARTS)
def test_frozen_parts_get_no_gradient_no_state_and_no_update(make_parts, batch, part):
    parts = make_parts(mm_tunable_parts=(part,))
    before = parts.weights()
    parts.step(batch)
    learning = names_of(part, parts.model)
    adams = [chained.optimizer for chained in parts.optimizer.chained_optimizers]
    stateful = {id(parameter) for adam in adams for parameter in adam.state}
    for name, parameter in parts.model.named_parameters():
        assert (id(parameter) in stateful) == (name in learning), name
        assert hasattr(parameter, "main_grad") == (name in learning), name
        if name not in learning:
            assert torch.equal(parameter, before[name]), name
    assert any(not torch.equal(before[name], w) for name, w in parts.weights().items())


PARTS_BESIDE = [
    ("mm_language_model",),
    ("mm_language_model", "mm_mlp_adapter"),
    TUNABLE_PARTS,
]


@pytest.mark.proves("D6")
@pytest.mark.parametrize("parts", PARTS_BESIDE, ids="+".join)
def test_only_what_is_meant_learns(make_parts, batch, parts):
    from megatron_llava.parallel.groups import set_seed

    set_seed(3)
    made = make_parts(lora_rank=4, mm_tunable_parts=parts)
    model, before = made.model, made.weights()
    meant = {name for name in before if ".lora." in name} | {"image_newline"}
    for name in before:
        if name.startswith("vision_projection.") and "mm_mlp_adapter" in parts:
            meant.add(name)
        if name.startswith("vision_model.") and "mm_vision_tower" in parts:
            meant.add(name)
    for _ in range(2):  # A has no gradient while B is zero
        made.step(batch)
    changed = {name for name, p in made.weights().items() if not torch.equal(p, before[name])}
    assert changed == meant
    adams = [chained.optimizer for chained in made.optimizer.chained_optimizers]
    stateful = {id(parameter) for adam in adams for parameter in adam.state}
    named = dict(model.named_parameters())
    assert stateful == {id(named[name]) for name in meant}
    # Buffers of gradients hold those of what learns and nothing else.
    buffers = [b for w in made.wrapped for b in w.buffers + w.expert_parallel_buffers]
    assert sum(b.numel for b in buffers) == sum(named[name].numel() for name in meant)
