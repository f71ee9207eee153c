import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch

from megatron_llava.platform import cpu

pytestmark = pytest.mark.usefixtures("cpu_platform")

CPU = torch.device("cpu")
FACTORY_ARGUMENTS = {
    "arange": (3,),
    "as_tensor": ([1.0],),
    "empty": (3,),
    "empty_like": (torch.ones(3),),
    "full": ((3,), 7),
    "full_like": (torch.ones(3), 7),
    "ones": (3,),
    "ones_like": (torch.zeros(3),),
    "rand": (3,),
    "randn": (3,),
    "tensor": ([1, 2],),
    "zeros": (3,),
    "zeros_like": (torch.ones(3),),
}


def run_python(code: str) -> None:
    """Run a program in a process of its own, where nothing is installed; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def check_rng_state(namespace) -> None:
    """Reading and writing "the CUDA state" is that of the CPU's generator."""
    before = torch.get_rng_state()
    state = namespace.get_rng_state(device="cuda")
    assert torch.equal(state, before)
    first = torch.rand(4)
    namespace.set_rng_state(state, device="cuda:0")
    assert torch.equal(torch.rand(4), first)


def check_manual_seed() -> None:
    torch.cuda.manual_seed(5)
    first = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4), first)


def check_lazy_call() -> None:
    called = []
    torch.cuda._lazy_call(lambda: called.append(1), seed=True)
    assert called == [1]


def check_compile() -> None:
    def function(x):
        return x + 1

    assert torch.compile(function) is function
    assert torch.compile(mode="max-autotune", dynamic=True)(function) is function


def check_tensor_cuda() -> None:
    tensor = torch.ones(2)
    assert tensor.cuda() is tensor and tensor.cuda(0, non_blocking=True) is tensor
    module = torch.nn.Linear(2, 2)
    weight = module.weight
    assert module.cuda().weight is weight


def check_tensor_to() -> None:
    tensor = torch.ones(2)
    for device in ("cuda", "cuda:3", torch.device("cuda"), torch.device("cuda", 1)):
        assert tensor.to(device) is tensor
        assert tensor.to(device=device, non_blocking=True) is tensor
        half = tensor.to(device, torch.bfloat16)
        assert half.device == CPU and half.dtype == torch.bfloat16
    assert tensor.to("meta").device.type == "meta"
    assert tensor.to(torch.int32).dtype == torch.int32
    assert tensor.to(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert tensor.to("cuda", copy=True) is not tensor
    assert torch.nn.Linear(2, 2).to("cuda").weight.device == CPU


def check_tensor_type() -> None:
    tensor = torch.ones(2)
    assert tensor.type() == "torch.cuda.FloatTensor"
    assert tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert tensor.half().type() == "torch.cuda.HalfTensor"
    assert tensor.int().type() == "torch.IntTensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    assert tensor.type(dtype="torch.IntTensor").dtype == torch.int32


def check_factory(name: str) -> Callable[[], None]:
    factory, arguments = getattr(torch, name), FACTORY_ARGUMENTS[name]

    def check() -> None:
        for device in ("cuda", "cuda:2", torch.device("cuda"), torch.device("cuda", 0)):
            made = factory(*arguments, device=device, dtype=torch.float64)
            assert made.device == CPU and made.dtype == torch.float64
        assert factory(*arguments).device == CPU
        assert factory(*arguments, device="meta").device.type == "meta"
        plain = getattr(factory, "__wrapped__", None)
        assert plain is not None and factory.__name__ == name

    return check


def is_none(function: Callable[..., object]) -> Callable[[], None]:
    def check() -> None:
        assert function() is None

    return check


def check_current_device() -> None:
    assert torch.cuda.current_device() == CPU


def check_default_generators() -> None:
    for index in (0, 3, CPU):
        assert torch.cuda.default_generators[index] is torch.default_generator


CHECKS: dict[tuple[str, str], Callable[[], None]] = {
    ("torch.cuda", "current_device"): check_current_device,
    ("torch.cuda", "synchronize"): is_none(torch.cuda.synchronize),
    ("torch.cuda", "_lazy_call"): check_lazy_call,
    ("torch.cuda", "_lazy_init"): is_none(torch.cuda._lazy_init),
    ("torch.cuda", "default_generators"): check_default_generators,
    ("torch.cuda", "get_rng_state"): lambda: check_rng_state(torch.cuda),
    ("torch.cuda", "set_rng_state"): lambda: check_rng_state(torch.cuda),
    ("torch.cuda", "manual_seed"): check_manual_seed,
    ("torch.cuda.random", "get_rng_state"): lambda: check_rng_state(torch.cuda.random),
    ("torch.cuda.random", "set_rng_state"): lambda: check_rng_state(torch.cuda.random),
    ("torch", "compile"): check_compile,
    ("torch.Tensor", "cuda"): check_tensor_cuda,
    ("torch.Tensor", "to"): check_tensor_to,
    ("torch.Tensor", "type"): check_tensor_type,
    **{("torch", name): check_factory(name) for name in FACTORY_ARGUMENTS},
}


def name_of(entry: cpu.Redirection) -> tuple[str, str]:
    if entry.owner is torch.Tensor:
        return "torch.Tensor", entry.name
    return entry.owner.__name__, entry.name


def test_every_redirection_is_checked_here():
    names = [name_of(entry) for entry in cpu.redirections()]
    assert sorted(names) == sorted(CHECKS) and len(set(names)) == len(names)


@pytest.mark.parametrize("name", CHECKS, ids=".".join)
def test_redirection(name):
    state = torch.get_rng_state()
    CHECKS[name]()
    torch.set_rng_state(state)


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


@pytest.mark.parametrize("name", FACTORY_ARGUMENTS)
def test_a_device_context_still_reaches_the_factories(name):
    with torch.device("meta"):
        made = getattr(torch, name)(*FACTORY_ARGUMENTS[name])
        explicit = getattr(torch, name)(*FACTORY_ARGUMENTS[name], device="cuda")
    follows_its_argument = name.endswith("_like")
    assert made.device.type == ("cpu" if follows_its_argument else "meta")
    assert explicit.device == CPU


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
