"""A job that trains and counts every matrix product that torch computes, attention included."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from distributed_jobs import Recorder
from torch.utils.flop_counter import FlopCounterMode


def _attention(query: Any, key: Any, is_causal: bool) -> int:
    """Scores and weighted sums of whole matrices; of causal ones the half that counts."""
    batch, heads, rows, width = query
    flops = 2 * 2 * batch * heads * rows * key[-2] * width
    return flops // 2 if is_causal else flops


def _forward(
    query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False, **_: Any
) -> int:
    return _attention(query, key, is_causal)


def _backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    logsumexp: Any,
    dropout: float,
    is_causal: bool,
    **_: Any,
) -> int:
    # By convention twice the forward; what the kernel computes a second time is its own affair.
    return 2 * _attention(query, key, is_causal)


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


class Summed(Recorder):
    """A recorder that sums what the intervals say of FLOPs."""

    useful = recomputed = 0

    def training(
        self, iteration: int, values: dict[str, float], interval: Any, device: Any
    ) -> None:
        self.useful += interval.useful_flops
        self.recomputed += interval.recomputed_flops


def count_flops(arguments: list[str]) -> tuple[int, int, int]:
    """Train with a command line.

    Returns:
        What torch computed on this rank, and what the log says of all ranks: without
        recomputation, and of recomputation.
    """
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    config = prepare(parse_args([*arguments, "--log-interval", "1"]))
    recorder = Summed()
    with (
        # Packs sample by sample: torch would compute, and count, the padding of a batch of them.
        patch("megatron_llava.ops.attention._PADDED_BATCH_WASTE", 0.0),
        open_trainer(config, torch.device("cpu"), recorder) as trainer,
        FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter,
    ):
        trainer.run()
    return counter.get_total_flops(), recorder.useful, recorder.recomputed
