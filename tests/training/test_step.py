"""One optimizer step: what it reports, and how it ends when the numbers are no numbers."""

import numpy as np
import pytest
import torch
from tiny_model import pack, tiny_config, tiny_sample

pytestmark = pytest.mark.usefixtures("single_rank")

PLACES = [
    "language_model.embedding.word_embeddings.weight",
    "vision_projection.encoder.linear_fc1.weight",
    "image_newline",
]


def without_labels(*samples):
    """The samples as a pack in which no position has a loss."""
    for sample in samples:
        sample.label_mask[:] = 0
    return pack(tiny_config(), samples)


@pytest.mark.proves("D11", "D15")
def test_the_loss_is_the_mean_over_all_supervised_tokens(make_parts, batches):
    parts = make_parts()
    with torch.no_grad():
        losses = torch.cat([parts.model(batch) for batch in batches]).double()
    result = parts.step(*batches)
    assert result.loss_count == losses.numel() == sum(b.loss_rows.numel() for b in batches)
    # A mean of the two packs' means would be another number.
    assert result.loss == pytest.approx(float(losses.mean()), rel=1e-6)


@pytest.mark.parametrize("reduction", ["sample", "microbatch-mean"])
def test_samples_or_packs_may_weigh_alike(make_parts, batches, reduction):
    parts = make_parts(loss_reduction=reduction, clip_grad=1e-3)
    means = []
    for batch in batches:
        losses = parts.model(batch)
        ends = batch.cu_seqlens[1:].tolist()
        sample = [sum(row >= end for end in ends) for row in batch.loss_rows.tolist()]
        parted = [
            [loss for loss, s in zip(losses, sample, strict=True) if s == k] for k in range(9)
        ]
        parted = [part for part in parted if part] if reduction == "sample" else [list(losses)]
        means += [torch.stack(part).mean() for part in parted]
    assert len(means) == (3 if reduction == "sample" else 2)
    expected = torch.stack(means).mean()
    parameters = list(parts.model.parameters())
    gradient = torch.autograd.grad(expected, parameters)
    result = parts.step(*batches)
    assert result.loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert result.loss_count == len(means)
    norm = torch.cat([g.double().flatten() for g in gradient]).norm()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.proves("D15")
def test_the_gradient_norm_is_that_before_clipping(make_parts, batches):
    parts = make_parts(clip_grad=1e-3)
    count = sum(batch.loss_rows.numel() for batch in batches)
    losses = torch.cat([parts.model(batch) for batch in batches])
    parameters = dict(parts.model.named_parameters())
    gradients = torch.autograd.grad(losses.sum() / count, list(parameters.values()))
    expected = torch.cat([g.double().flatten() for g in gradients]).norm()
    result = parts.step(*batches)
    assert result.grad_norm == pytest.approx(float(expected), rel=1e-4)
    assert result.grad_norm > 1e-3


@pytest.mark.parametrize("clip_grad", [0.0, 1e-3, 1e6])
def test_what_is_updated_with_has_at_most_the_clipped_norm(make_parts, batches, clip_grad):
    parts = make_parts(clip_grad=clip_grad)
    before = parts.step(*batches).grad_norm
    gradients = [parameter.main_grad.double().flatten() for parameter in parts.model.parameters()]
    allowed = min(before, clip_grad) if clip_grad else before
    assert float(torch.cat(gradients).norm()) == pytest.approx(allowed, rel=1e-4)


def test_a_loss_beyond_the_limit_changes_nothing(make_parts, batches):
    from megatron_llava.training.step import train_step

    parts = make_parts()
    rows, before = len(batches[0].position_ids), parts.weights()

    def step(limit):
        given = (parts.wrapped, parts.optimizer, parts.scheduler, iter(batches), 2, rows)
        return train_step(*given, largest_loss=limit)

    first = step(1.0)
    assert first.skipped and first.loss > first.largest_loss == 1.0
    assert all(torch.equal(old, parts.weights()[name]) for name, old in before.items())
    again = step(first.loss)
    assert not again.skipped and again.loss == first.loss


def test_the_rate_reported_is_the_one_that_was_used(make_parts, batches):
    parts = make_parts(lr_warmup_iters=2)
    before = parts.weights()
    assert parts.step(*batches).learning_rates == {"lr": 0.0}
    assert all(torch.equal(before[name], w) for name, w in parts.weights().items())
    assert parts.step(*batches).learning_rates == {"lr": pytest.approx(5e-4)}


def test_a_step_without_labels_is_skipped(make_parts, batches):
    """With moments and weight decay, which alone would change weights."""
    parts = make_parts(weight_decay=0.1)
    assert not parts.step(*batches).skipped
    before, moments = parts.weights(), adam_moments(parts)
    result = parts.step(without_labels(tiny_sample([(40, 20)], 6, 5)))
    assert (result.loss, result.loss_count, result.grad_norm) == (0.0, 0, 0.0)
    assert result.skipped
    assert_nothing_changed(parts, before, moments, steps=1)


def test_a_pack_without_loss_rows_changes_nothing_beside_another(make_parts, batches):
    alone, beside = make_parts(), make_parts()
    empty = without_labels(tiny_sample([(40, 20)], 6, 5))
    expected, found = alone.step(batches[0]), beside.step(batches[0], empty)
    assert found.loss == expected.loss and found.loss_count == expected.loss_count
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)


def assert_nothing_changed(parts, before, moments, steps):
    for name, weight in parts.weights().items():
        assert torch.equal(before[name].nan_to_num(7.0), weight.nan_to_num(7.0)), name
    for old, new in zip(moments, adam_moments(parts), strict=True):
        assert torch.equal(old, new)
    assert parts.scheduler.num_steps == steps


def adam_moments(parts):
    adam = parts.optimizer.chained_optimizers[0].optimizer
    return [value.clone() for state in adam.state.values() for value in state.values()]


@pytest.mark.proves("D15")
@pytest.mark.parametrize("place", PLACES)
def test_a_loss_that_is_no_number_skips_the_step(make_parts, batches, place):
    parts = make_parts()
    parts.step(batches[0])
    weight = dict(parts.model.named_parameters())[place].data
    good = weight.clone()
    weight.fill_(float("nan"))
    before, moments, steps = parts.weights(), adam_moments(parts), parts.scheduler.num_steps
    result = parts.step(batches[0])
    assert result.skipped and result.microbatches_not_finite == (0,)
    assert result.loss != result.loss and result.loss_count == batches[0].loss_rows.numel()
    assert_nothing_changed(parts, before, moments, steps)
    weight.copy_(good)
    assert not parts.step(batches[0]).skipped
    assert all(weight.isfinite().all() for weight in parts.weights().values())


def test_the_microbatch_at_fault_is_named(make_parts, batches):
    parts = make_parts()
    forward, calls = parts.model.forward, []

    def spoilt(batch):
        calls.append(batch)
        return forward(batch) * (float("inf") if len(calls) == 2 else 1.0)

    parts.model.forward = spoilt
    result = parts.step(batches[0], batches[1], batches[0])
    assert result.skipped and result.microbatches_not_finite == (1,)


@pytest.mark.proves("D15")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38], ids=str)
@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_gradient_that_is_no_number_skips_the_step(make_parts, batches, value, clip_grad, bf16):
    """Nor may its norm be infinite, as that of some very large numbers is."""
    parts = make_parts(clip_grad=clip_grad, bf16=bf16)
    parts.step(batches[0])
    newline = parts.model.image_newline
    hook = newline.register_hook(lambda gradient: torch.full_like(gradient, value))
    before, moments, steps = parts.weights(), adam_moments(parts), parts.scheduler.num_steps
    result = parts.step(batches[0])
    assert result.skipped and result.microbatches_not_finite == ()
    assert 0 < result.loss < 100
    assert_nothing_changed(parts, before, moments, steps)
    hook.remove()
    after, clean = parts.step(batches[0]), make_parts(clip_grad=clip_grad, bf16=bf16)
    clean.step(batches[0])
    assert after == clean.step(batches[0])
    for name, weight in clean.weights().items():
        assert torch.equal(weight, parts.weights()[name]), name


@pytest.mark.parametrize("reduction", ["token", "sample", "microbatch-mean"])
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "none"])
def test_shares_of_a_pack_add_up_to_its_loss(single_rank, reduction, labels):
    """Also where one context-parallel rank has none of the pack's labels."""
    from megatron_llava.data.collate import collate
    from megatron_llava.data.share import Share, share_of_pack
    from megatron_llava.training.step import reduced_loss
    from megatron_llava.vision.settings import image_settings

    samples = [tiny_sample([(40, 20)], 9, 1), tiny_sample([], 5, 2), tiny_sample([], 4, 3)]
    for sample in samples[: 1 if labels else 3]:
        sample.label_mask[:] = 0
    settings = image_settings(tiny_config())
    pack_of_all = collate(samples, settings, sequence_multiple=6, pad_multiple=6)
    ranks = [Share(context_rank=r, context_size=3, view_rank=r, view_size=3) for r in range(3)]
    shares = [share_of_pack(pack_of_all, rank, settings.tokens_per_view) for rank in ranks]
    assert labels is False or not all(len(share.loss_rows) for share in shares)
    total, count = 0.0, 0
    for share in shares:
        rows = len(share.loss_rows)
        losses = torch.arange(1.0, rows + 1) if rows else torch.zeros(1)
        losses += torch.from_numpy(share.loss_labels) if rows else 0
        part, counted, _ = reduced_loss(reduction, share.to_torch(), losses)
        total, count = total + float(part), count + int(counted)
        share.loss_labels[:] += np.arange(1, rows + 1)
    by_sample = {}
    for share in shares:
        for label, sample in zip(share.loss_labels, share.loss_samples, strict=True):
            by_sample.setdefault(int(sample), []).append(float(label))
    groups = list(by_sample.values())
    if reduction != "sample" and groups:
        groups = [sum(groups, [])]
    if reduction == "token":
        assert count == sum(map(len, groups))
        assert total == pytest.approx(sum(map(sum, groups)))
        return
    assert count == len(groups)
    assert total == pytest.approx(sum(sum(group) / len(group) for group in groups))
