"""Attention between the images of a sample, behind the projector (--cross-image-attention).

y = x + W_o attention(LayerNorm(x)) over all image features of a sample, one image behind the other,
each seeing all others; of a video all frames. W_o begins as zeros, so that it changes nothing until
it learns.

Shape suffixes: F features of a pack, H language width, L features of one sample, N heads of this
tensor-parallel rank, A width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.training import CROSS_IMAGE_ATTENTION
from megatron_llava.models.specs import Norm

OPTIONAL_WEIGHTS = tuple(
    f"{CROSS_IMAGE_ATTENTION}.{name}"
    for name in (
        "norm.weight",
        "norm.bias",
        "linear_qkv.weight",
        "linear_qkv.bias",
        "linear_proj.weight",
        "linear_proj.bias",
    )
)
"""Parameters that a checkpoint may lack, as ``image_rows.OPTIONAL_ROWS``."""


class CrossImageAttention(MegatronModule):
    """Heads are those of the language model, dealt over the tensor-parallel ranks.

    Args:
        config: of the projector: all widths are the language model's.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config=config)
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.head_width = hidden // heads
        common = {"config": config, "bias": True, "skip_bias_add": False}
        self.norm = Norm(config, hidden)
        # Rows by head, query, key and value of each: ranks hold whole heads.
        self.linear_qkv = ColumnParallelLinear(
            hidden, 3 * hidden, init_method=config.init_method, gather_output=False, **common
        )
        self.linear_proj = RowParallelLinear(
            hidden, hidden, init_method=torch.nn.init.zeros_, input_is_parallel=True, **common
        )
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """Draw from torch's seed alone, as ``image_rows`` does: every layout draws the same."""
        generator = torch.Generator().manual_seed(torch.initial_seed())
        weight = self.linear_qkv.weight
        shape = (3 * self.config.hidden_size, self.config.hidden_size)
        whole = torch.randn(shape, generator=generator, device="cpu") * self.config.init_method_std
        rank = parallel_state.get_tensor_model_parallel_rank()
        weight.copy_(whole[rank * len(weight) :][: len(weight)])

    def forward(self, features_FH: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """[F, H] to the same.

        Args:
            lengths: features of each sample that has any, in order; without one, all features are
                one sample's, so that every rank has every gradient.
        """
        qkv, _ = self.linear_qkv(self.norm(features_FH))
        mixed = []
        for qkv_L in qkv.split(list(lengths) or [len(qkv)]):
            heads_NLA = qkv_L.unflatten(1, (-1, 3, self.head_width)).permute(2, 1, 0, 3)
            mixed_NLA = F.scaled_dot_product_attention(*heads_NLA.unsqueeze(1))[0]
            mixed.append(mixed_NLA.transpose(0, 1).flatten(1))
        change_FH, _ = self.linear_proj(torch.cat(mixed))
        return features_FH + change_FH
