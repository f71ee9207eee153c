"""What every vision tower is to the rest of the model.

Shape suffixes: V views, T patches per view, K values of a patch (3 * P * P), D tower width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class Tower(MegatronModule):
    """Patches of views to features of the selected layer.

    Args:
        config: core's configuration of the encoder.
        patch_size: P, in pixels.
        whole_on_each_rank: every tensor-parallel rank holds all weights and encodes other views;
            the gradients of a step are then averaged over those ranks.
        views_at_once: views that are encoded together, None for all that are given.
    """

    def __init__(
        self,
        config: TransformerConfig,
        patch_size: int,
        *,
        whole_on_each_rank: bool = False,
        views_at_once: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.patch_size = patch_size
        self.whole_on_each_rank = whole_on_each_rank
        self.views_at_once = views_at_once

    def mark_whole(self) -> None:
        """Tell core how tensor-parallel ranks relate: same weights, gradients of other views.

        A view's gradient arrives from each of them, that is, as often as the average divides it.
        """
        for parameter in self.parameters():
            parameter.tensor_model_parallel = False
            parameter.partition_dim, parameter.partition_stride = -1, 1
            parameter.average_gradients_across_tp_domain = True

    @torch.no_grad()
    def equalize(self) -> None:
        """Give every tensor-parallel rank the first one's weights: on CUDA, core draws other random
        numbers on each."""
        source = parallel_state.get_tensor_model_parallel_src_rank()
        for parameter in self.parameters():
            dist.broadcast(
                parameter, source, group=parallel_state.get_tensor_model_parallel_group()
            )

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Core's description of the weights; of whole ones the first rank's copy is the one."""
        state = super().sharded_state_dict(*args, **kwargs)
        if self.whole_on_each_rank:
            rank = parallel_state.get_tensor_model_parallel_rank()
            for entry in state.values():
                first, _, data_rank = entry.replica_id
                entry.replica_id = (first, rank, data_rank)
        return state

    def forward(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        """Encode patches [V, T, K] of normalised tiles to features [V, T, D], in raster order.

        Args:
            patches_VTK: what ``ops.tiles_to_patches`` makes of tiles.
        """
        if self.views_at_once is None or len(patches_VTK) <= self.views_at_once:
            return self.encode(patches_VTK)
        return torch.cat([self.encode(part) for part in patches_VTK.split(self.views_at_once)])

    def encode(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        """The same of as many views as are encoded together."""
        raise NotImplementedError
