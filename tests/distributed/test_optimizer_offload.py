"""--optimizer-cpu-offload with a stand-in for the GPU: core's hybrid optimizer, all on the CPU.

Core decides by ``is_cuda`` what it copies to the host; here that is everything.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from distributed_jobs import Recorder, train

FLAGS = ("--bf16", "--use-distributed-optimizer")
OFFLOAD = {"use_precision_aware_optimizer": True, "optimizer_cpu_offload": True}


def all_on_host(hybrid: Any, fraction: float) -> tuple[Any, ...]:
    """What core's hybrid optimizer makes of parameters on a GPU, of which all are offloaded."""
    assert fraction == 1.0
    groups, copy_of, original_of, float32_of = [], {}, {}, {}
    for group in hybrid.param_groups:
        copies = [parameter.detach().clone().float() for parameter in group["params"]]
        for parameter, copy in zip(group["params"], copies, strict=True):
            copy_of[parameter], original_of[copy] = copy, parameter
            if parameter.dtype != torch.float32:
                float32_of[parameter] = copy
        groups.append({**group, "params": copies})
    return groups, [], copy_of, original_of, float32_of


@contextmanager
def stand_in() -> Any:
    from megatron.core.optimizer import distrib_optimizer, optimizer_config
    from megatron.core.optimizer.cpu_offloading import hybrid_optimizer

    unpinned: Callable[..., Any] = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return unpinned(*args, **kwargs)

    name = "_get_sub_optimizer_param_groups"
    with (
        patch.object(hybrid_optimizer.HybridDeviceOptimizer, name, all_on_host),
        patch.object(torch.cuda, "current_stream", MagicMock()),
        patch.object(torch.cuda, "stream", MagicMock()),
        patch.object(torch, "empty", empty),
        # Without Transformer Engine core does not get as far as its hybrid optimizer.
        patch.object(optimizer_config, "is_te_min_version", lambda version: True),
        patch.object(distrib_optimizer, "HAVE_APEX_OR_TE", True),
    ):
        yield


def train_offloaded(arguments: list[str]) -> dict[str, Any]:
    """As ``distributed_jobs.train``, with the flags that a CPU refuses."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    config = prepare(parse_args([*arguments, "--log-interval", "1"]))
    recorder = Recorder()
    with stand_in():
        offloaded = config.with_values(OFFLOAD, "flag")
        with open_trainer(offloaded, torch.device("cpu"), recorder) as trainer:
            trainer.run()
            shapes = [type(p.optimizer).__name__ for p in trainer.optimizer.chained_optimizers]
    return {**vars(recorder), "optimizers": shapes}


def losses(run):
    return [step["lm loss"] for step in run["steps"]]


def test_it_trains_as_the_distributed_optimizer_does_and_resumes(pool, setup, tmp_path):
    arguments = setup.arguments(*FLAGS, steps=5)
    plain = pool.run(train, arguments, world_size=2)[0]
    whole = pool.run(train_offloaded, arguments, world_size=2)[0]
    assert set(whole["optimizers"]) == {"HybridDeviceOptimizer"}
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-5)
    for sharding in ((), ("--dist-ckpt-optim-fully-reshardable",)):
        folder = tmp_path / str(len(sharding))
        saving = [*arguments, f"--save={folder}", f"--load={folder}", "--save-interval=3"]
        pool.run(train_offloaded, [*saving, *sharding, "--exit-interval=3"], world_size=2)
        found = pool.run(train_offloaded, [*saving, *sharding], world_size=2)[0]
        assert losses(found) == losses(whole)[3:]
