"""Training with emulated FP8: near bfloat16, and its scales go through recomputation and saving."""

import pytest
import torch
from tiny_model import pack, tiny_config, tiny_sample

FP8 = {"bf16": True, "fp8_format": "hybrid", "fp8_emulation": True}
LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


def losses(parts, batches, steps):
    return [parts.step(*batches).loss for _ in range(steps)]


def other_batch():
    return pack(tiny_config(), [tiny_sample([(40, 60)], 12, 5), tiny_sample([], 11, 6)])


def state(parts):
    scales = parts.model.fp8_scales
    return torch.cat((scales.scales[None], scales.history))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fp8_format": "e4m3", "fp8_amax_history_len": 4, "fp8_amax_compute_algo": "max"},
        {"fp8_recipe": "tensorwise"},
    ],
    ids=["hybrid-delayed", "e4m3-max", "hybrid-tensorwise"],
)
def test_the_loss_follows_that_of_bfloat16(make_parts, batch, changes):
    steps = 30
    bf16 = losses(make_parts(bf16=True, train_iters=steps), [batch], steps)
    fp8 = losses(make_parts(**{**FP8, **changes}, train_iters=steps), [batch], steps)
    assert fp8 != bf16 and bf16[-1] < 0.7 * bf16[0]
    assert fp8 == pytest.approx(bf16, rel=0.03)


LORA = {**FP8, "fp8_recipe": "tensorwise", "lora_rank": 4, "lora_alpha": 16.0}


def test_adapters_stand_beside_linears_in_fp8(make_parts, batch):
    """The frozen product is rounded, the adapter's is not."""
    from megatron_llava.ops.fp8 import fp8_linear
    from megatron_llava.peft.layers import adapted_linears

    parts = make_parts(**LORA, lora_dropout=0.0)
    (linear, *_) = adapted_linears(parts.model)
    torch.nn.init.normal_(linear.lora.b)
    x = torch.randn(5, 1, linear.weight.shape[1], dtype=torch.bfloat16)
    found, _ = linear(x)
    rounded = fp8_linear(x.flatten(0, 1), linear.weight, linear.scaling).view(5, 1, -1)
    assert torch.equal(found, rounded + linear.lora(x, lambda low: low))
    assert not torch.equal(rounded, x @ linear.weight.t())


@pytest.mark.parametrize("recompute", [{}, {"recompute_activations": True}], ids=str)
def test_adapters_beside_fp8_learn_as_beside_bfloat16(make_parts, batch, recompute):
    given = {"lora_rank": 4, "lora_alpha": 16.0, "lora_dropout": 0.0, "lr": 1e-2}
    given |= {"mm_tunable_parts": ("mm_mlp_adapter", "mm_language_model")}
    bf16 = losses(make_parts(**given, bf16=True), [batch], 20)
    fp8 = losses(make_parts(**LORA | given | recompute), [batch], 20)
    assert fp8 != bf16 and bf16[-1] < 0.9 * bf16[0]
    assert fp8 == pytest.approx(bf16, rel=0.03)


def test_only_the_linears_of_the_decoder_are_emulated(make_parts):
    from megatron_llava.models.fp8_layers import Fp8ColumnParallelLinear, Fp8RowParallelLinear

    parts = make_parts(**FP8, num_layers=4, first_last_layers_bf16=True)
    emulated = [
        name
        for name, module in parts.model.named_modules()
        if isinstance(module, (Fp8ColumnParallelLinear, Fp8RowParallelLinear))
    ]
    assert sorted(name.removeprefix("language_model.decoder.layers.") for name in emulated) == [
        f"{layer}.{part}"
        for layer in (1, 2)
        for part in sorted(
            f"{'self_attention' if 'qkv' in name or 'proj' in name else 'mlp'}.{name}"
            for name in LINEARS
        )
    ]


@pytest.mark.parametrize(
    "recompute",
    [
        {"recompute_activations": True},
        {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
        {
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": 1,
        },
    ],
    ids=["selective", "uniform", "block"],
)
def test_recomputation_changes_no_bit(make_parts, batch, recompute):
    """Scales have moved on when a layer is recomputed: they do at the end of each forward."""
    batches = [batch, other_batch()]
    plain, recomputed = make_parts(**FP8), make_parts(**FP8, **recompute)
    assert losses(plain, batches, 4) == losses(recomputed, batches, 4)
    assert torch.equal(state(plain), state(recomputed))
    weights = recomputed.weights()
    assert all(torch.equal(value, weights[name]) for name, value in plain.weights().items())


def test_scales_move_once_a_microbatch(make_parts, batch):
    parts = make_parts(**FP8, fp8_amax_history_len=8)
    for step in (1, 2):
        losses(parts, [batch, other_batch()], 1)
        filled = torch.count_nonzero(parts.model.fp8_scales.history, dim=0)
        # Inputs, weights (rounded once a step) and gradients.
        assert (filled == torch.tensor([2 * step, step, 2 * step])).all()
    before = state(parts)
    with torch.no_grad():
        parts.model(batch)
    assert torch.equal(state(parts), before)


def test_the_checkpoint_holds_the_scales_of_each_layer(make_parts, batch):
    parts = make_parts(**FP8, fp8_amax_history_len=3)
    losses(parts, [batch], 2)
    saved = parts.model.state_dict()
    fresh = make_parts(**FP8, fp8_amax_history_len=3)
    assert not torch.equal(state(fresh), state(parts))
    fresh.model.load_state_dict(saved)
    assert torch.equal(state(fresh), state(parts))
    plain = make_parts(bf16=True)
    plain.model.load_state_dict(saved)
    fresh.model.load_state_dict(plain.model.state_dict())
    assert torch.equal(state(fresh), state(parts))
