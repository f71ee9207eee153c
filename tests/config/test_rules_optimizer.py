"""Which types and places of optimizer state fit together, and what is said where they do not."""

import pytest

from megatron_llava.config.rules_optimizer import check_optimizer
from megatron_llava.config.run import RunConfig

AWARE = {
    "use_precision_aware_optimizer": True,
    "use_distributed_optimizer": True,
    "device": "cuda",
    "bf16": True,
}
OFFLOAD = {**AWARE, "optimizer_cpu_offload": True}


def config_of(values):
    return RunConfig().with_values(values, "flag")


@pytest.mark.parametrize(
    "values",
    [
        {},
        AWARE,
        {**AWARE, "bf16": False},
        {**AWARE, "main_params_dtype": "fp16", "exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "bf16"},
        OFFLOAD,
        {**OFFLOAD, "optimizer_offload_fraction": 0.5, "overlap_cpu_optimizer_d2h_h2d": True},
    ],
)
def test_allowed(values):
    check_optimizer(config_of(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"exp_avg_dtype": "bf16"}, "--exp-avg-dtype bf16 needs --use-precision-aware-optimizer"),
        ({**AWARE, "optimizer_offload_fraction": 0.5}, "0.5 needs --optimizer-cpu-offload"),
        ({**AWARE, "use_distributed_optimizer": False}, "needs --use-distributed-optimizer"),
        ({**AWARE, "device": "cpu"}, "needs a GPU, and --device is cpu"),
        (
            {**AWARE, "bf16": False, "fp16": True},
            "with --fp16 takes no gradients in float16: add --accumulate-allreduce-grads-in-fp32",
        ),
        ({"optimizer_cpu_offload": True}, "offload needs --use-precision-aware-optimizer"),
        ({**OFFLOAD, "bf16": False}, "--optimizer-cpu-offload needs --bf16"),
        ({**OFFLOAD, "exp_avg_dtype": "bf16"}, "--exp-avg-dtype bf16 with --optimizer-cpu-offl"),
        ({**OFFLOAD, "optimizer_offload_fraction": 0.0}, "-fraction 0.0: give more than 0"),
        ({**OFFLOAD, "optimizer_offload_fraction": 1.5}, "-fraction 1.5: give more than 0"),
        (
            {**OFFLOAD, "overlap_cpu_optimizer_d2h_h2d": True, "grad_reduce_in_bf16": True},
            "--overlap-cpu-optimizer-d2h-h2d with --grad-reduce-in-bf16: .*drop one",
        ),
    ],
)
def test_refused(values, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_optimizer(config_of(values))
    assert "\n" not in str(caught.value)
