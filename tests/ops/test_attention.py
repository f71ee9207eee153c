import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_llava.ops import attention
from megatron_llava.ops.attention import dense_attention, packed_attention

WIDTH = 8
NEVER_PADDED, ALWAYS_PADDED = 0.0, float("inf")


def draw_qkv(rows, heads, groups, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, count, WIDTH, generator=generator).to(dtype).requires_grad_()
        for count in (heads, groups, groups)
    ]


def masked_reference(query, key, value, lengths, causal, scale):
    """Softmax attention in float64 over the whole pack, with a block-diagonal mask."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = sequence[:, None] == sequence[None]
    if causal:
        allowed = allowed.tril()
    scores = torch.einsum("qnd,knd->nqk", query, key) * scale
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("nqk,knd->qnd", weights, value).flatten(1)


def cumulative(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def check(lengths, heads, groups, causal, seed=0):
    """Output and the three gradients of packed_attention against the reference."""
    qkv = draw_qkv(sum(lengths), heads, groups, seed)
    scale = 0.3
    found = packed_attention(*qkv, cumulative(lengths), max(lengths), causal=causal, scale=scale)
    expected = masked_reference(*qkv, lengths, causal, scale)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed + 1))
    gradients = torch.autograd.grad(found, qkv, grad)
    expected_gradients = torch.autograd.grad(expected, qkv, grad.double())
    for ours, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    ratio=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)]),
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_a_block_diagonal_mask(lengths, ratio, causal, seed):
    check(lengths, *ratio, causal, seed)


@pytest.mark.parametrize("waste", [NEVER_PADDED, ALWAYS_PADDED])
@pytest.mark.parametrize(
    "lengths", [[7], [1] * 20, [1, 12, 1, 3], [5, 5, 5], [9, 8, 9, 7]], ids=str
)
@pytest.mark.parametrize("ratio", [(4, 4), (4, 2), (3, 1)], ids=str)
def test_both_paths_are_exact(monkeypatch, waste, lengths, ratio):
    calls = []
    padded = attention._padded_batch
    monkeypatch.setattr(attention, "_PADDED_BATCH_WASTE", waste)
    monkeypatch.setattr(attention, "_padded_batch", lambda *a: calls.append(1) or padded(*a))
    check(lengths, *ratio, causal=True)
    assert len(calls) == (waste == ALWAYS_PADDED and len(lengths) > 1)


def test_the_path_is_chosen_by_the_share_of_padding(monkeypatch):
    chosen = []
    padded = attention._padded_batch
    monkeypatch.setattr(attention, "_padded_batch", lambda *a: chosen.append(1) or padded(*a))

    def is_padded(lengths, causal=True):
        chosen.clear()
        check(lengths, 2, 1, causal)
        return bool(chosen)

    assert is_padded([6, 6, 6]) and is_padded([6, 3, 3])  # 18 slots for 18 and 12 rows
    assert not is_padded([9, 1, 1])  # 27 slots for 11 rows
    assert not is_padded([6])
    assert not is_padded([6, 6, 6], causal=False)  # a full row would see the padding


def test_one_sequence_is_dense_attention():
    query, key, value = draw_qkv(6, 4, 2, 3)
    bounds = torch.tensor([0, 6], dtype=torch.int32)
    packed = packed_attention(query, key, value, bounds, 6, causal=True, scale=0.3)
    dense = dense_attention(query[:, None], key[:, None], value[:, None], causal=True, scale=0.3)
    assert torch.equal(packed, dense[:, 0])


@pytest.mark.parametrize("causal", [False, True])
def test_dense_attention_of_a_batch(causal):
    length, batch = 5, 3
    qkv = draw_qkv(length * batch, 4, 2, 4)
    by_sequence = [tensor.unflatten(0, (batch, length)).transpose(0, 1) for tensor in qkv]
    found = dense_attention(*by_sequence, causal=causal, scale=0.3)
    expected = masked_reference(*qkv, [length] * batch, causal, 0.3)
    expected = expected.unflatten(0, (batch, length)).transpose(0, 1)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("waste", [NEVER_PADDED, ALWAYS_PADDED])
def test_bfloat16_stays_bfloat16(monkeypatch, waste):
    monkeypatch.setattr(attention, "_PADDED_BATCH_WASTE", waste)
    lengths = [4, 6, 5]
    qkv = draw_qkv(15, 4, 2, 5, torch.bfloat16)
    found = packed_attention(*qkv, cumulative(lengths), 6, causal=True, scale=0.3)
    assert found.dtype == torch.bfloat16
    expected = masked_reference(*qkv, lengths, True, 0.3)
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=2e-2)


def test_rows_beyond_the_last_sequence_are_refused():
    query, key, value = draw_qkv(6, 2, 2, 0)
    bounds = torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(AssertionError, match="cu_seqlens end at 5, rows 6"):
        packed_attention(query, key, value, bounds, 5, causal=True, scale=0.3)


@pytest.mark.parametrize(
    ("backend", "installed", "expected"),
    [
        ("auto", True, "flash_attn_varlen"),
        ("auto", False, "torch_varlen"),
        ("flash", True, "flash_attn_varlen"),
        ("flash", False, "torch_varlen"),
        ("local", True, "torch_varlen"),
        ("unfused", True, None),
    ],
)
def test_which_kernel_takes_a_pack(monkeypatch, backend, installed, expected):
    monkeypatch.setattr(attention.varlen, "has_flash_attn", lambda: installed)
    kernel = attention._varlen_kernel(True, torch.bfloat16, backend)
    assert (kernel.__name__ if kernel else None) == expected
    assert attention._varlen_kernel(True, torch.float32, backend) is None
    assert attention._varlen_kernel(False, torch.bfloat16, backend) is None
