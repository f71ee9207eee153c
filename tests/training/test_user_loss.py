"""A loss of the user's own: what it is given, what becomes of it, and what it may not return."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loss_functions import rollout
from tiny_model import pack, tiny_config, tiny_sample

pytestmark = pytest.mark.usefixtures("single_rank")

SAMPLES = {
    7: tiny_sample([(90, 80)], 9, 1),
    2: tiny_sample([], 5, 2),
    4: tiny_sample([(25, 70)], 30, 3),
}


def packed(*numbers):
    """Samples of a store as a pack whose losses say where they come from."""
    from megatron_llava.data.collate import collate
    from megatron_llava.data.loss_origins import with_loss_origins
    from megatron_llava.vision.settings import image_settings

    batch = collate([SAMPLES[number] for number in numbers], image_settings(tiny_config()))
    return with_loss_origins(batch, torch.tensor(numbers).numpy()).to_torch()


def own(name):
    from megatron_llava.training.user_loss import UserLoss

    return UserLoss(f"loss_functions:{name}")


def log_probabilities(model, batch):
    """Of the labels [L], by plain torch from the logits."""
    logits = model.logits(model.decode(batch), batch.loss_rows)[:, : model.vocab_size]
    return logits.log_softmax(-1).gather(1, batch.loss_labels[:, None])[:, 0]


def places(batch):
    """The samples and positions [L] of the rows of a pack, counted one by one."""
    counted, found = {}, []
    for sample in batch.loss_origins[:, 0].tolist():
        counted[sample] = counted.get(sample, -1) + 1
        found.append((sample, counted[sample]))
    return torch.tensor(found).unbind(1)


@pytest.mark.proves("F1")
@pytest.mark.parametrize("reduction", ["token", "sample", "microbatch-mean"])
def test_the_cross_entropy_as_ones_own_changes_no_bit(make_parts, reduction):
    given = {"loss_reduction": reduction, "text_loss_coeff": 0.7}
    without, with_own = make_parts(**given), make_parts(**given)
    for _ in range(3):
        batches = [packed(7, 2), packed(4)]
        assert without.step(*batches) == with_own.step(*batches, user_loss=own("plain"))
    for name, weight in without.weights().items():
        assert torch.equal(weight, with_own.weights()[name]), name


def test_what_the_function_is_given(make_parts, monkeypatch):
    import loss_functions

    parts, batch, given = make_parts(), packed(4, 7, 2), []
    monkeypatch.setattr(
        loss_functions, "plain", lambda rows: given.append(rows) or -rows.log_probabilities
    )
    expected = log_probabilities(parts.model, batch).detach()
    parts.step(batch, user_loss=own("plain"))
    (rows,) = given
    torch.testing.assert_close(rows.log_probabilities.detach(), expected)
    assert {*rows.samples.tolist()} == {4, 7, 2}
    for number, sample in SAMPLES.items():
        mine = rows.samples == number
        # The first position of a sample has none before it that could predict it.
        labels = sample.token_ids[1:][sample.label_mask[1:] == 1].tolist()
        assert rows.labels[mine].tolist() == labels
        assert rows.positions[mine].tolist() == list(range(len(labels)))


@pytest.mark.proves("F1")
def test_a_clipped_policy_loss_is_that_of_plain_torch(make_parts):
    """Losses and the gradient of every parameter; some ratios are clipped on either side."""
    parts, batches = make_parts(clip_grad=0.0), [packed(7, 2), packed(4)]
    losses, clipped = [], []
    for batch in batches:
        old, advantages = rollout(*places(batch))
        ratio = torch.exp(log_probabilities(parts.model, batch) - old)
        low, high = torch.tensor(0.8), torch.tensor(1.2)
        bounded = torch.where(ratio > high, high, torch.where(ratio < low, low, ratio))
        objective = torch.stack((ratio * advantages, bounded * advantages)).amin(0)
        losses.append(-objective)
        clipped += [(bounded == side) & (objective == bounded * advantages) for side in (low, high)]
    assert all(torch.cat(clipped[side::2]).any() for side in (0, 1))
    expected = torch.cat(losses).mean()
    named = dict(parts.model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(expected, [*named.values()]), strict=True))
    result = parts.step(*batches, user_loss=own("ppo_clip"))
    assert result.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert result.loss_count == sum(map(len, losses))
    for name, parameter in named.items():
        found = parameter.main_grad
        torch.testing.assert_close(found, gradients[name], rtol=1e-4, atol=1e-7, msg=name)


def test_the_function_of_the_manual_is_the_clipped_loss(tmp_path, monkeypatch):
    from megatron_llava.training.user_loss import LossRows

    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    code = text.split("## A loss of your own")[1].split("```python")[1].split("```")[0]
    samples, positions = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 1, 2, 0])
    old, advantages = rollout(samples, positions)
    olds, of_samples = torch.zeros(3, 4), torch.zeros(3)
    olds[samples, positions] = old
    of_samples[samples] = advantages
    torch.save((olds, of_samples), tmp_path / "rollout.pt")
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch}
    exec(code, names)
    ratio = torch.tensor([0.5, 0.9, 1.1, 1.5])
    found = names["ppo_clip"](
        LossRows(
            log_probabilities=old + ratio.log(), labels=None, samples=samples, positions=positions
        )
    )
    gained = torch.minimum(ratio * of_samples[samples], ratio.clip(0.8, 1.2) * of_samples[samples])
    torch.testing.assert_close(found, -gained)


def test_a_pack_without_loss_rows_is_not_asked_about(make_parts):
    sample = tiny_sample([(40, 20)], 6, 5)
    sample.label_mask[:] = 0
    batch = replace(
        pack(tiny_config(), [sample]), loss_origins=torch.zeros((0, 2), dtype=torch.int64)
    )
    result = make_parts().step(batch, user_loss=own("raises"))
    assert (result.loss, result.loss_count, result.grad_norm) == (0.0, 0, 0.0)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("doubled", r"float64 \[4\] on cpu with a gradient"),
        ("summed", r"float32 \[\] on cpu with a gradient"),
        ("detached", r"float32 \[4\] on cpu without a gradient"),
        ("listed", "a list"),
    ],
)
def test_what_is_no_loss_of_each_row_is_an_error(make_parts, name, found):
    parts, batch = make_parts(), packed(7)
    assert len(batch.loss_rows) == 4
    with pytest.raises(ValueError) as caught:
        parts.step(batch, user_loss=own(name))
    expected = r"expected the loss of each row, float32 \[4\] on cpu with a gradient"
    assert caught.match(rf"^--loss-function loss_functions:{name} returned {found}, {expected}$")


def test_an_error_of_the_function_is_the_cause_of_one_that_names_the_flag(make_parts):
    with pytest.raises(RuntimeError, match="--loss-function loss_functions:raises") as caught:
        make_parts().step(packed(7), user_loss=own("raises"))
    assert str(caught.value.__cause__) == "no advantages here"


@pytest.mark.parametrize("name", ["nowhere:plain", "loss_functions:absent", "loss_functions"])
def test_a_function_that_is_not_there(name):
    from megatron_llava.training.user_loss import user_loss

    with pytest.raises(ValueError, match=f"--loss-function {name}: expected MODULE:FUNCTION"):
        user_loss(tiny_config(loss_function=name))
    assert user_loss(tiny_config()) is None
