"""The model on a GPU, in the process of the tests; skipped, visibly, where there is none."""

import pytest
import torch
from tiny_model import (
    losses_and_gradients,
    mixed_samples,
    relative_difference,
    tiny_config,
    tiny_model,
)

from megatron_llava.data.collate import collate
from megatron_llava.ops import tiles_to_patches, visual_pack
from megatron_llava.vision.settings import image_settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Heads of 64 channels, as kernels for packed sequences want them.
SIZES = {
    "hidden_size": 256,
    "ffn_hidden_size": 320,
    "vision_hidden_size": 128,
    "vision_ffn_hidden_size": 192,
    "mm_patch_merge_type": "spatial_unpad",
}


@pytest.fixture(scope="module")
def one_gpu():
    """A world of one NCCL rank with core's groups."""
    from megatron_llava.config.parallel import ParallelConfig
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups, set_seed
    from megatron_llava.platform.device import (
        join_process_group,
        leave_process_group,
        set_up_device,
    )

    set_up_device("cuda")
    join_process_group("cuda", timeout_minutes=2)
    initialize_groups(ParallelConfig(device="cuda"))
    set_seed(0)
    yield
    destroy_groups()
    leave_process_group()


@pytest.fixture(
    params=[("local", "auto"), ("transformer_engine", "local"), ("transformer_engine", "auto")],
    ids=" with attention ".join,
)
def implementation(request, one_gpu, monkeypatch):
    """The layers, and the attention in them."""
    # Core tells Transformer Engine the attention through these, once in a process.
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        monkeypatch.delenv(name, raising=False)
    if request.param[0] == "transformer_engine":
        pytest.importorskip("transformer_engine")
    return dict(zip(("transformer_impl", "attention_backend"), request.param, strict=True))


def on_gpu(**changes):
    """A bfloat16 model and a batch for it; the same numbers whatever the implementation."""
    config = tiny_config(device="cuda", bf16=True, **SIZES, **changes)
    batch = collate(mixed_samples(), image_settings(config), pad_multiple=16).to_torch("cuda")
    return tiny_model(config).cuda().bfloat16(), batch


def test_nothing_in_the_forward_waits_for_the_gpu(implementation):
    model, batch = on_gpu(**implementation)
    model(batch).sum().backward()  # what is set up once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = model(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.isfinite().all()


def test_the_compiled_operators_give_the_losses_of_plain_torch(one_gpu, monkeypatch):
    model, batch = on_gpu()
    losses, gradients = losses_and_gradients(model, batch)
    for module in (tiles_to_patches, visual_pack):
        monkeypatch.setattr(module, "compiled_for", lambda tensor: False)
    expected_losses, expected = losses_and_gradients(model, batch)
    assert torch.equal(losses, expected_losses)
    for name, gradient in expected.items():
        assert relative_difference(gradients[name], gradient) < 2e-2, name


@pytest.mark.proves("E3")
def test_answers_with_the_tower_on_the_cpu_are_those_of_the_gpu_alone(one_gpu):
    from megatron_llava.inference.generate import generate
    from megatron_llava.inference.load import place

    model, _ = on_gpu()
    settings = model.image_settings
    how = {"max_new_tokens": 3, "stop_token_ids": (), "rows_per_pack": 64}
    expected = list(generate(model, mixed_samples(), settings, **how))
    place(model, torch.device("cuda"), torch.device("cpu"))
    assert not any(parameter.is_cuda for parameter in model.vision_model.parameters())
    assert all(parameter.is_cuda for parameter in model.language_model.parameters())
    found = list(generate(model, mixed_samples(), settings, **how))
    for one, other in zip(found, expected, strict=True):
        assert relative_difference(one.prompt_logits, other.prompt_logits) < 2e-2
