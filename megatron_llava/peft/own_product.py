"""Core's parallel linears with another product than torch's, and core's communication."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)


class OwnProduct(torch.nn.Module):
    """What core's two parallel linears call for their product; mixed in before one of them."""

    @abstractmethod
    def product(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[S, B, I] with the weight that core hands over, to [S, B, O]."""

    def _forward_impl(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: dist.ProcessGroup | None,
        **_: Any,
    ) -> torch.Tensor:
        """Core's protocol: input [S, B, I] to [S, B, O], with the collectives of its backward."""
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(
                input, tensor_parallel_output_grad=True, group=tp_group
            )
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        output = self.product(input, weight)
        return output if bias is None else output + bias
