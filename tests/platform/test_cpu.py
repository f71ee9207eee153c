import contextlib

import pytest
import torch
from own_process import run_python

from megatron_llava.platform import cpu

pytestmark = pytest.mark.usefixtures("cpu_platform")


def test_installing_twice_does_nothing():
    before = torch.Tensor.to
    cpu.install()
    assert torch.Tensor.to is before


def test_uninstall_restores_every_name():
    run_python("""
        import torch
        from megatron_llava.platform import cpu

        ABSENT = object()

        def names():
            entries = [(e.owner, e.name) for e in cpu.redirections()]
            return [(vars(o).get(n, ABSENT), getattr(o, n)) for o, n in entries]

        before = names()
        cpu.install()
        assert cpu.is_installed()
        for (_, old), (_, new) in zip(before, names(), strict=True):
            assert old is not new
        cpu.uninstall()
        assert not cpu.is_installed()
        for (own, value), (own_after, value_after) in zip(before, names(), strict=True):
            assert own is own_after and (value is value_after)
        assert torch.ones(2).type() == "torch.FloatTensor"
        cpu.uninstall()
        cpu.install()
        assert torch.ones(2, device="cuda").type() == "torch.cuda.FloatTensor"
    """)


def test_install_after_core_is_refused():
    run_python("""
        import megatron.core
        from megatron_llava.platform import cpu

        try:
            cpu.install()
        except RuntimeError as error:
            assert "megatron.core was imported before the CPU platform" in str(error)
        else:
            raise AssertionError("installed after core")
        assert not cpu.is_installed()
    """)


@pytest.mark.parametrize("version", ["0.15.3", "0.16.0", "0.17.0", "0.17", "1.0"])
def test_an_unmapped_core_is_refused(version):
    with pytest.raises(ValueError) as caught:
        cpu.check_core_version(version)
    message = str(caught.value)
    assert message == (
        f"--device cpu: megatron-core {version} is installed, but its CUDA calls were mapped for "
        ">=0.16.1,<0.17; install megatron-core==0.16.1"
    )


@pytest.mark.parametrize("version", ["0.16.1", "0.16.9", None])
def test_a_mapped_core_is_accepted(version):
    cpu.check_core_version(version)


@pytest.mark.parametrize("version", ["0.17.0rc1", "0.17.0.dev3"])
def test_a_preview_of_an_unmapped_core_is_refused(version):
    """As versions these come before 0.17."""
    with pytest.raises(ValueError, match="0.17.0"):
        cpu.check_core_version(version)


def test_transformers_loads_buffers_as_they_were(tmp_path):
    """from_pretrained builds on the meta device, then computes the buffers that no file holds."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            image_size=28, patch_size=14,
        )
    )  # fmt: skip
    text = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            vocab_size=8,
        )
    )  # fmt: skip
    for model in (vision, text):
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        buffers = dict(model.named_buffers())
        assert buffers
        for name, buffer in loaded.named_buffers():
            assert torch.equal(buffer, buffers[name]), name


def test_core_forks_and_restores_its_random_states(single_rank):
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    torch.manual_seed(3)
    expected = torch.rand(6)
    torch.manual_seed(11)
    expected_inside = torch.rand(4)

    torch.manual_seed(3)
    tracker = CudaRNGStatesTracker()
    tracker.add("tower", 11)
    outside = [torch.rand(2)]
    with tracker.fork("tower"):
        inside = [torch.rand(2)]
    outside.append(torch.rand(2))
    with contextlib.suppress(KeyError), tracker.fork("tower"):
        inside.append(torch.rand(2))
        raise KeyError
    outside.append(torch.rand(2))
    assert torch.equal(torch.cat(outside), expected)
    assert torch.equal(torch.cat(inside), expected_inside)


def test_core_recomputes_dropout_with_the_same_mask(single_rank):
    from megatron.core.tensor_parallel.random import checkpoint

    from megatron_llava.parallel.groups import set_seed

    def run(recompute):
        set_seed(4)
        x = torch.ones(64, requires_grad=True)

        def function(x):
            return torch.nn.functional.dropout(x * x, 0.5)

        out = checkpoint(function, False, x) if recompute else function(x)
        torch.rand(5)  # the state moves on before the backward
        out.sum().backward()
        return out.detach(), x.grad

    kept, recomputed = run(False), run(True)
    assert torch.equal(kept[0], recomputed[0]) and torch.equal(kept[1], recomputed[1])
    assert 0 < int((kept[0] == 0).sum()) < 64


def test_core_takes_nothing_of_transformer_engine(tmp_path):
    """On a CPU its optimizer and norms fail, or touch memory that is not theirs."""
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    run_python(
        f"""
        import sys
        from importlib.util import find_spec
        sys.path.insert(0, {str(tmp_path)!r})
        assert find_spec("transformer_engine") is not None
        from megatron_llava.platform import cpu
        cpu.install()
        assert find_spec("transformer_engine") is None
        import megatron.core.optimizer as optimizer
        import torch
        assert optimizer.Adam is torch.optim.AdamW, optimizer.Adam
        cpu.uninstall()
        assert find_spec("transformer_engine") is not None
        """
    )
