"""A step whose loss is the text's and the alignment's: what it reports, and what learns."""

import pytest
import torch
from tiny_model import mixed_samples, pack

pytestmark = pytest.mark.usefixtures("single_rank")

ALIGN = {"align_loss_coeff": 30.0, "text_loss_coeff": 0.5, "mm_tunable_parts": ("mm_mlp_adapter",)}


@pytest.mark.proves("D12")
def test_a_step_adds_both_and_only_the_projector_learns(make_parts):
    """The alignment's own sums are those of the model, which tests/models holds to its formula."""
    parts = make_parts(**ALIGN, clip_grad=0.0)
    samples = mixed_samples()
    batches = [pack(parts.config, samples[:3]), pack(parts.config, samples[3:])]
    learned = [p for p in parts.model.parameters() if p.requires_grad]
    losses = torch.cat([parts.model.eval()(batch) for batch in batches])
    text = torch.autograd.grad(0.5 * losses.sum(), learned)
    parts.model.train()
    both = torch.cat([parts.model(batch) for batch in batches])
    expected = float(parts.model.alignment.take())
    total = torch.autograd.grad(both.sum(), learned)
    alone = torch.autograd.grad(
        torch.cat([parts.model.eval()(batch) for batch in batches]).sum(), learned
    )
    parts.model.train()
    gradient = [(b - a + t) / len(losses) for b, a, t in zip(total, alone, text, strict=True)]
    before = parts.weights()
    result = parts.step(*batches)
    assert result.align_loss == pytest.approx(expected / len(losses), rel=1e-6) and expected > 0
    assert result.loss == pytest.approx(float(losses.detach().mean()), rel=1e-6)
    norm = torch.cat([g.double().flatten() for g in gradient]).norm()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
    for name, weight in parts.weights().items():
        assert torch.equal(before[name], weight) != name.startswith("vision_projection."), name
