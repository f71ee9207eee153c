"""Rules about flags that say how to write and read checkpoints."""

import pytest

from megatron_llava.config.validate import validate

SAVE = {"save": "out", "save_interval": 5}
DISTRIBUTED = {"use_distributed_optimizer": True}
RESHARDABLE = {"dist_ckpt_optim_fully_reshardable": True}
PARALLEL_LOAD = {"ckpt_fully_parallel_load": True}


@pytest.mark.parametrize(
    "changes",
    [
        {**RESHARDABLE, **DISTRIBUTED, **SAVE},
        {**PARALLEL_LOAD, "load": "in"},
        {**PARALLEL_LOAD, "pretrained_checkpoint": "in"},
    ],
)
def test_flags_that_do_something_pass(make_config, changes):
    validate(make_config(**changes), 1)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({**RESHARDABLE, **DISTRIBUTED}, "--dist-ckpt-optim-fully-reshardable|--save, which"),
        (
            {**RESHARDABLE, **SAVE},
            "--dist-ckpt-optim-fully-reshardable|--use-distributed-optimizer, which is not given",
        ),
        (PARALLEL_LOAD, "--ckpt-fully-parallel-load|--load or --pretrained-checkpoint"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(make_config, changes, parts):
    with pytest.raises(ValueError) as caught:
        validate(make_config(**changes), 1)
    message = str(caught.value)
    assert all(part in message for part in parts.split("|")), message
    assert "\n" not in message
