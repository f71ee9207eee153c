"""CLIP and SigLIP vision towers on core's TransformerBlock.

Shape suffixes: V views, T patches per view, K values of a patch (3 * P * P), L encoder rows per
view (T, or T + 1 with a class token), D tower width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.model import VisionConfig
from megatron_llava.models.specs import Norm, vision_block_spec


class PatchEmbedding(torch.nn.Conv2d):
    """A convolution whose windows do not overlap, given them as rows: one matmul.

    Its parameters are a convolution's, by name, shape and initial values.
    """

    def forward(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        """Embed patches to [V, T, D]; a row is ordered as ``weight.flatten(1)`` is."""
        return torch.nn.functional.linear(patches_VTK, self.weight.flatten(1), self.bias)


class VisionTower(MegatronModule):
    """Patch embedding, positions, encoder. Returns the features of the selected layer.

    Only the layers up to ``--mm-vision-select-layer`` are built: hidden state -2 of a CLIP with n
    layers is the output of layer n - 1. CLIP's class token takes part in attention and is dropped
    from the result. There is no norm after the encoder: LLaVA takes hidden states, which have none.

    Args:
        config: core's configuration of the encoder.
        vision: sizes and kind of the tower.
        whole_on_each_rank: every tensor-parallel rank holds all weights and encodes other views;
            the gradients of a step are then averaged over those ranks.
        views_at_once: views that are encoded together, None for all that are given.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vision: VisionConfig,
        *,
        whole_on_each_rank: bool = False,
        views_at_once: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.views_at_once = views_at_once
        groups = ProcessGroupCollection.use_mpu_process_groups()
        if whole_on_each_rank:
            # The group of this rank alone: there are no experts, whose ranks would be in it.
            groups.tp = parallel_state.get_expert_model_parallel_group()
            assert groups.tp.size() == 1
        self.whole_on_each_rank = whole_on_each_rank
        width, patch = config.hidden_size, vision.vision_patch_size
        self.has_class_token = vision.vision_model_type == "clip"
        self.patches = (vision.vision_image_size // patch) ** 2
        rows = self.patches + int(self.has_class_token)
        dtype = config.params_dtype
        self.conv1 = PatchEmbedding(
            3, width, patch, stride=patch, bias=not self.has_class_token, dtype=dtype
        )
        self.position_embeddings = torch.nn.Embedding(rows, width, dtype=dtype)
        self.register_buffer("positions", torch.arange(rows), persistent=False)
        if self.has_class_token:
            self.class_token = torch.nn.Parameter(torch.randn(1, 1, width, dtype=dtype))
            self.ln_pre = Norm(config, width, config.layernorm_epsilon)
        self.decoder = TransformerBlock(
            config=config,
            spec=vision_block_spec(config),
            post_layer_norm=False,
            pre_process=True,
            post_process=True,
            pg_collection=groups,
        )
        if whole_on_each_rank:
            self._mark_whole()

    def _mark_whole(self) -> None:
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
            return self._encode(patches_VTK)
        return torch.cat([self._encode(part) for part in patches_VTK.split(self.views_at_once)])

    def _encode(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        hidden_VTD = self.conv1(patches_VTK)
        assert hidden_VTD.shape[1] == self.patches, (hidden_VTD.shape, self.patches)
        if self.has_class_token:
            class_V1D = self.class_token.expand(hidden_VTD.shape[0], -1, -1)
            hidden_VTD = torch.cat((class_V1D, hidden_VTD), dim=1)
        hidden_VLD = hidden_VTD + self.position_embeddings(self.positions)
        if self.has_class_token:
            hidden_VLD = self.ln_pre(hidden_VLD)
        hidden_LVD = self.decoder(hidden_VLD.transpose(0, 1).contiguous(), attention_mask=None)
        return hidden_LVD[int(self.has_class_token) :].transpose(0, 1)
