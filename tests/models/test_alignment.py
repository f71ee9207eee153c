"""The alignment loss of stage 1 against a plain float64 reading of its formula."""

import numpy as np
import pytest
import torch
from tiny_model import (
    mixed_samples,
    pack,
    relative_difference,
    tiny_config,
    tiny_model,
    tiny_sample,
)

from megatron_llava.models.build import build_llava_model
from megatron_llava.training.freeze import freeze_parts

pytestmark = pytest.mark.usefixtures("single_rank")

ALIGN = {"align_loss_coeff": 0.7, "mm_tunable_parts": ("mm_mlp_adapter",)}
PROJECTOR = "vision_projection."


EVEN = 8
"""Image rows of the sample below: a base view and one tile, 2 x 2 features each."""


def samples():
    """Every mixed sample, one without labels, and one with as many labels as image rows."""
    quiet = tiny_sample([(40, 20)], 4, 7)
    quiet.label_mask[:] = 0
    even = tiny_sample([(28, 28)], 40, 8)
    even.label_mask[:] = 0
    text = np.flatnonzero(even.token_ids >= 0)
    even.label_mask[text[-EVEN:]] = 1
    return [*mixed_samples(), quiet, even]


def reference(model, batch, *, reduction="token", by_token=False):
    """sum of weight * MSE over the samples, in float64, one sample at a time."""
    features = model.encode_images(batch.tiles).double()
    embeddings = model.language_model.embedding.word_embeddings.weight.detach().double()
    bounds = batch.cu_seqlens.tolist()
    means, tokens = [], []
    for sample in range(batch.num_samples):
        rows = [
            sum(
                weight * features[tap]
                for tap, weight in zip(batch.taps[row], batch.weights[row].double(), strict=True)
                if weight
            )
            for row in range(bounds[sample], bounds[sample + 1])
            if batch.weights[row].any() and batch.taps[row].max() < len(features)
        ]
        labels = batch.loss_labels[batch.loss_samples == sample]
        tokens.append(len(labels))
        if not rows or not len(labels):
            means.append(torch.zeros((), dtype=torch.float64))
        elif by_token and len(rows) == len(labels):
            means.append(torch.nn.functional.mse_loss(torch.stack(rows), embeddings[labels]))
        else:
            means.append(((torch.stack(rows).mean(0) - embeddings[labels].mean(0)) ** 2).mean())
    weights = torch.tensor(tokens, dtype=torch.float64)
    if reduction == "sample":
        weights = (weights > 0).double()
    elif reduction == "microbatch-mean":
        weights = weights / weights.sum()
    return (weights * torch.stack(means)).sum()


@pytest.mark.proves("D12")
@pytest.mark.parametrize("reduction", ["token", "sample", "microbatch-mean"])
@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_value_and_gradient_are_those_of_the_formula(reduction, pooling):
    config = tiny_config(
        **ALIGN, loss_reduction=reduction, align_loss_pooling=pooling, text_loss_coeff=0.0
    )
    model = tiny_model(config)
    freeze_parts(model, config.training.mm_tunable_parts)
    batch = pack(config, samples(), pad_multiple=64)
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert learned and all(name.startswith(PROJECTOR) for name in learned)
    expected = reference(model, batch, reduction=reduction, by_token=pooling == "token")
    gradients = torch.autograd.grad(0.7 * expected, list(learned.values()))
    losses = model(batch)
    assert losses.tolist() == [0.0]
    assert float(model.alignment.take()) == pytest.approx(expected.item(), rel=1e-5)
    assert float(model.alignment.take()) == 0.0
    losses.sum().backward()
    for (name, parameter), gradient in zip(learned.items(), gradients, strict=True):
        assert relative_difference(parameter.grad, gradient) < 1e-4, name
    assert all(p.grad is None for n, p in model.named_parameters() if n not in learned)
    if pooling == "token":
        assert float(expected) != pytest.approx(
            float(reference(model, batch, reduction=reduction)), rel=1e-3
        )


@pytest.mark.proves("D12", "D13")
def test_beside_the_text_loss_both_gradients_add_up():
    config = tiny_config(**ALIGN)
    model, plain = tiny_model(config), tiny_model(tiny_config())
    for part in (model, plain):
        freeze_parts(part, config.training.mm_tunable_parts)
    batch = pack(config, samples())
    text = plain(batch)
    text.sum().backward()
    (0.7 * reference(plain, batch)).backward()
    losses = model(batch)
    losses.sum().backward()
    assert torch.equal(losses, text)
    for (name, found), (_, expected) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert (found.grad is not None) == name.startswith(PROJECTOR), name
        if found.grad is not None:
            assert relative_difference(found.grad, expected.grad) < 1e-4, name


@pytest.mark.parametrize("batch_of", [[], [tiny_sample([], 9, 1)]], ids=["empty", "text"])
def test_a_pack_without_an_image_has_no_alignment(batch_of):
    config = tiny_config(**ALIGN, text_loss_coeff=0.0)
    model = tiny_model(config)
    freeze_parts(model, config.training.mm_tunable_parts)
    model(pack(config, batch_of, pad_multiple=8)).sum().backward()
    assert float(model.alignment.take()) == 0.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.proves("D12", "D13")
def test_off_or_while_evaluating_there_is_none():
    config = tiny_config(**ALIGN, text_loss_coeff=0.0)
    model, plain = build_llava_model(config), build_llava_model(tiny_config())
    assert plain.alignment is None
    assert model.state_dict().keys() == plain.state_dict().keys()
    model = tiny_model(config).eval()
    batch = pack(config, mixed_samples())
    assert torch.equal(model(batch), tiny_model(tiny_config())(batch))
    assert float(model.alignment.take()) == 0.0
