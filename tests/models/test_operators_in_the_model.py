"""The model computes the same with the compiled operators and with plain torch."""

import pytest
import torch
from tiny_model import (
    losses_and_gradients,
    mixed_samples,
    pack,
    relative_difference,
    tiny_config,
    tiny_model,
)

from megatron_llava.ops import tiles_to_patches, visual_pack
from megatron_llava.ops.operators import compiled_for, plain_torch_remark

pytestmark = [
    pytest.mark.usefixtures("single_rank"),
    pytest.mark.skipif(
        not compiled_for(torch.zeros(1)), reason="the package was installed without a compiler"
    ),
]


def test_losses_and_gradients_are_those_of_plain_torch(monkeypatch):
    config = tiny_config()
    model, batch = tiny_model(config), pack(config, mixed_samples())
    losses, gradients = losses_and_gradients(model, batch)
    for module in (tiles_to_patches, visual_pack):
        monkeypatch.setattr(module, "compiled_for", lambda tensor: False)
    monkeypatch.setattr(torch.ops.megatron_llava, "visual_pack", None)
    expected_losses, expected = losses_and_gradients(model, batch)
    assert torch.equal(losses, expected_losses)
    for name, gradient in expected.items():
        assert relative_difference(gradients[name], gradient) < 1e-6, name


def test_nothing_is_said_where_the_operators_are_compiled():
    assert plain_torch_remark("cpu") is None
    assert "slower" in plain_torch_remark("mps")
