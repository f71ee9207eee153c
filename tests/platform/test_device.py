import pytest
import torch
from own_process import TORCHRUN, run_python

from megatron_llava.platform.device import (
    check_fp8_device,
    check_tf32,
    select_device,
    set_up_device,
)
from megatron_llava.platform.torchrun import global_rank, local_rank, world_size


@pytest.mark.parametrize("sees_gpu", [True, False])
def test_select_device(monkeypatch, sees_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    assert select_device("auto") == ("cuda" if sees_gpu else "cpu")
    assert select_device("cpu") == "cpu"
    if sees_gpu:
        assert select_device("cuda") == "cuda"


def test_cuda_without_a_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError) as caught:
        select_device("cuda")
    message = str(caught.value)
    assert message.startswith(f"--device cuda: torch {torch.__version__} sees no GPU")
    assert "--device cpu" in message and "\n" not in message


@pytest.mark.parametrize(
    ("found", "recipe", "needed"),
    [
        ((8, 0), "delayed", "8.9"),
        ((8, 6), "tensorwise", "8.9"),
        ((8, 9), "delayed", None),
        ((8, 9), "blockwise", "9.0"),
        ((9, 0), "blockwise", None),
        ((12, 0), "delayed", None),
    ],
)
def test_a_gpu_without_fp8_products_is_one_line(monkeypatch, found, recipe, needed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    check_fp8_device("cpu", recipe)
    if needed is None:
        check_fp8_device("cuda", recipe)
        return
    with pytest.raises(ValueError) as caught:
        check_fp8_device("cuda", recipe)
    message = str(caught.value)
    assert f"--fp8-recipe {recipe} needs compute capability {needed}" in message
    assert f"has {found[0]}.{found[1]}" in message and "\n" not in message


@pytest.mark.parametrize(("found", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_without_tf32_is_one_line(monkeypatch, found, refused):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    check_tf32("cpu")
    if not refused:
        check_tf32("cuda")
        return
    with pytest.raises(ValueError, match=r"^--tf32 needs compute capability 8.0, .* has 7.5: drop"):
        check_tf32("cuda")


TF32 = """
    import torch
    from megatron_llava.platform.device import set_up_device

    # Of torch's state only: there is no GPU to choose.
    torch.cuda.set_device = print
    matmul = torch.backends.cuda.matmul
    for tf32 in (False, True):
        set_up_device("cuda", tf32=tf32)
        print(matmul.allow_tf32, matmul.fp32_precision, torch.get_float32_matmul_precision())
"""


@pytest.mark.proves("D10")
def test_tf32_is_what_torch_multiplies_with():
    lines = run_python(TF32).splitlines()
    assert lines == ["cuda:0", "False none highest", "cuda:0", "True tf32 high"]


def test_ranks_are_those_of_torchrun(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert (local_rank(), global_rank(), world_size()) == (0, 0, 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (local_rank(), global_rank(), world_size()) == (3, 7, 8)


def test_the_cpu_platform_is_set_up_again_without_harm(cpu_platform):
    assert set_up_device("cpu") == torch.device("cpu")


WORLD = """
    import torch
    import torch.distributed as dist
    import megatron_llava.platform.device as device

    assert device.set_up_device("cpu") == torch.device("cpu")
    device.leave_process_group()
    for _ in range(2):
        device.join_process_group("cpu", timeout_minutes=1)
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
        total = torch.ones(3, device="cuda")
        dist.all_reduce(total)
        assert total.tolist() == [1, 1, 1]
        device.leave_process_group()
        assert not dist.is_initialized()
        {after}
    print("joined")
"""


def test_a_world_of_one_without_torchrun(cpu_platform):
    assert run_python(WORLD.format(after="pass")) == "joined\n"


def test_a_world_of_one_under_torchrun(cpu_platform):
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    assert run_python(WORLD.format(after="break"), **variables, **address) == "joined\n"


def test_the_remark_on_connections_is_for_tensor_parallel_gpus_only(monkeypatch):
    from megatron_llava.platform.device import connections_remark

    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    assert "CUDA_DEVICE_MAX_CONNECTIONS=1" in connections_remark("cuda", 2)
    assert connections_remark("cpu", 2) is None and connections_remark("cuda", 1) is None
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    assert connections_remark("cuda", 2) is None
