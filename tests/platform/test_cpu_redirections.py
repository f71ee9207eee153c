"""Every name that the CPU platform replaces, one by one."""

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


def check_device_properties() -> None:
    with pytest.raises(RuntimeError, match="no GPU"):
        torch.cuda.get_device_properties(torch.cuda.current_device())


def check_default_generators() -> None:
    for index in (0, 3, CPU):
        assert torch.cuda.default_generators[index] is torch.default_generator


CHECKS: dict[tuple[str, str], Callable[[], None]] = {
    ("torch.cuda", "current_device"): check_current_device,
    ("torch.cuda", "get_device_properties"): check_device_properties,
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


@pytest.mark.parametrize("name", FACTORY_ARGUMENTS)
def test_a_device_context_still_reaches_the_factories(name):
    with torch.device("meta"):
        made = getattr(torch, name)(*FACTORY_ARGUMENTS[name])
        explicit = getattr(torch, name)(*FACTORY_ARGUMENTS[name], device="cuda")
    follows_its_argument = name.endswith("_like")
    assert made.device.type == ("cpu" if follows_its_argument else "meta")
    assert explicit.device == CPU
