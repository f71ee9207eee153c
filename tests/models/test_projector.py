"""Projectors of every shape against the original code's modules, and what the rows say of them."""

import pytest
import torch
from tiny_model import tiny_config
from torch import nn

from megatron_llava.config.projector import parse_projector_type
from megatron_llava.convert.families import PROJECTOR, projector_rules
from megatron_llava.models.core_config import projector_transformer_config
from megatron_llava.models.projector import build_projector

pytestmark = pytest.mark.usefixtures("single_rank")

SHAPES = ("linear", "mlp1x_gelu", "mlp2x_gelu", "mlp2x_relu", "mlp3x_gelu", "mlp2x_res2x_gelu")
VISION, HIDDEN = 24, 32


class Block(nn.Module):
    """The original code's SimpleResBlock, by its description."""

    def __init__(self):
        super().__init__()
        self.pre_norm = nn.LayerNorm(HIDDEN)
        self.proj = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))

    def forward(self, x):
        x = self.pre_norm(x)
        return x + self.proj(x)


def original(name):
    """The original code's projector of a type, with its parameters redrawn."""
    shape = parse_projector_type(name)
    if name == "linear":
        module = nn.Linear(VISION, HIDDEN)
    else:
        activation = {"gelu": nn.GELU, "relu": nn.ReLU}[shape.activation]
        parts = [nn.Linear(VISION, HIDDEN)]
        for _ in range(1, shape.linears):
            parts += [activation(), nn.Linear(HIDDEN, HIDDEN)]
        module = nn.Sequential(*parts, *(Block() for _ in range(shape.blocks)))
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module


@pytest.mark.proves("B5", "B6")
@pytest.mark.parametrize("name", SHAPES)
def test_it_computes_what_the_original_does(name):
    config = tiny_config(mm_projector_type=name)
    ours = build_projector(projector_transformer_config(config), VISION, parse_projector_type(name))
    theirs = original(name)
    weights = theirs.state_dict()
    if name in ("mlp2x_gelu", "mlp2x_relu"):
        weights = {
            k.replace("0.", "linear_1.").replace("2.", "linear_2."): v for k, v in weights.items()
        }
    sizes = {"vision_hidden_size": VISION, "hidden_size": HIDDEN, "mm_projector_type": name}
    state = {}
    for rule in projector_rules(sizes):
        state[rule.megatron.removeprefix("vision_projection.")] = rule.to_megatron(
            [weights.pop(hf.removeprefix(PROJECTOR)) for hf in rule.hf]
        )
    assert not weights, "every tensor of the original has a row"
    ours.load_state_dict(state, strict=True)
    features = torch.randn(7, VISION, generator=torch.Generator().manual_seed(4))
    found, expected = ours(features), theirs(features)
    assert found.shape == (7, HIDDEN) and (expected < 0).any(), "no activation behind the last"
    assert torch.allclose(found, expected, atol=1e-5)
    for module, output in ((ours, found), (theirs, expected)):
        output.square().sum().backward()
        assert all(parameter.grad.any() for parameter in module.parameters())
    first, last = next(ours.parameters()).grad, next(theirs.parameters()).grad
    assert torch.allclose(first, last, rtol=1e-4, atol=1e-4)
