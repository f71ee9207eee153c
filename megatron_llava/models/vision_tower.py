"""CLIP and SigLIP vision towers on core's TransformerBlock.

Shape suffixes: V views, T patches per view, K values of a patch (3 * P * P), L encoder rows per
view (T, or T + 1 with a class token), D tower width.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.model import VisionConfig
from megatron_llava.models.specs import Norm, vision_block_spec
from megatron_llava.models.tower import Tower


class PatchEmbedding(torch.nn.Conv2d):
    """A convolution whose windows do not overlap, given them as rows: one matmul.

    Its parameters are a convolution's, by name, shape and initial values.
    """

    def forward(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        """Embed patches to [V, T, D]; a row is ordered as ``weight.flatten(1)`` is."""
        return torch.nn.functional.linear(patches_VTK, self.weight.flatten(1), self.bias)


class VisionTower(Tower):
    """Patch embedding, positions, encoder. Returns the features of the selected layer.

    Only the layers up to ``--mm-vision-select-layer`` are built: hidden state -2 of a CLIP with n
    layers is the output of layer n - 1. CLIP's class token takes part in attention and is dropped
    from the result. There is no norm after the encoder: LLaVA takes hidden states, which have none.

    Args:
        config: see Tower.
        vision: sizes and kind of the tower.
        whole_on_each_rank, views_at_once: see Tower.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vision: VisionConfig,
        *,
        whole_on_each_rank: bool = False,
        views_at_once: int | None = None,
    ) -> None:
        assert vision.vision_patch_size is not None and vision.vision_image_size is not None
        super().__init__(
            config,
            vision.vision_patch_size,
            whole_on_each_rank=whole_on_each_rank,
            views_at_once=views_at_once,
        )
        groups = ProcessGroupCollection.use_mpu_process_groups()
        if whole_on_each_rank:
            # The group of this rank alone: there are no experts, whose ranks would be in it.
            groups.tp = parallel_state.get_expert_model_parallel_group()
            assert groups.tp.size() == 1
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
            self.mark_whole()

    def encode(self, patches_VTK: torch.Tensor) -> torch.Tensor:
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
