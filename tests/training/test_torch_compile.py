"""--torch-compile: the tower by inductor computes what it computes without."""

import shutil

import pytest
import torch
from tiny_model import tiny_config, tiny_model

from megatron_llava.platform import device


def outcome(tower, views):
    """Features of drawn views, and the gradients of their squares."""
    generator = torch.Generator().manual_seed(views)
    patches = torch.randn(views, tower.patches, 3 * 14 * 14, generator=generator)
    tower.zero_grad()
    features = tower(patches)
    features.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in tower.named_parameters()}
    return features.detach(), gradients


@pytest.mark.proves("D10")
@pytest.mark.grid
@pytest.mark.exhaustive  # a minute of compilation
@pytest.mark.usefixtures("single_rank")
def test_a_compiled_tower_gives_the_same_features_and_gradients():
    tower = tiny_model(tiny_config()).vision_model
    expected = {views: outcome(tower, views) for views in (3, 1, 7)}
    eager = tower.forward
    tower.forward = device.compiled(eager)
    assert tower.forward is not eager
    for views, (features, gradients) in expected.items():
        found, learned = outcome(tower, views)
        torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(learned[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="no g.. or clang..: install one, or drop"):
        device.check_compiler("cpu")
