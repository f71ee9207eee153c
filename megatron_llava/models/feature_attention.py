"""Attention among image features, behind the projector: y = x + W_o attention(LayerNorm(x)).

Each feature sees all others of its sequence, and none of another. --cross-image-attention is one
over the features of all images of a sample, one image behind the other; the temporal encoder has
one in each layer, over those of a video. W_o begins as zeros, so that it changes nothing until it
learns.

Shape suffixes: F features, H language width, L features of one sequence, N heads of this
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

ATTENTION_WEIGHTS = (
    "norm.weight",
    "norm.bias",
    "linear_qkv.weight",
    "linear_qkv.bias",
    "linear_proj.weight",
    "linear_proj.bias",
)
CROSS_IMAGE_WEIGHTS = tuple(f"{CROSS_IMAGE_ATTENTION}.{name}" for name in ATTENTION_WEIGHTS)
"""Parameters that a checkpoint may lack, as ``image_rows.OPTIONAL_ROWS``."""


class FeatureAttention(MegatronModule):
    """Heads are those of the language model, dealt over the tensor-parallel ranks.

    Args:
        config: of the projector: all widths are the language model's.
        generator: draws the weights; by default one of torch's seed alone, so that every layout
            draws the same.
    """

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None) -> None:
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
        draw_rows(self.linear_qkv.weight, 3 * hidden, config, generator or seeded_generator())

    def forward(self, features_FH: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """[F, H] to the same.

        Args:
            lengths: features of each sequence, in order; without one, all features are one, so
                that every rank has every gradient.
        """
        qkv, _ = self.linear_qkv(self.norm(features_FH))
        mixed = []
        for qkv_L in qkv.split(list(lengths) or [len(qkv)]):
            heads_NLA = qkv_L.unflatten(1, (-1, 3, self.head_width)).permute(2, 1, 0, 3)
            mixed_NLA = F.scaled_dot_product_attention(*heads_NLA.unsqueeze(1))[0]
            mixed.append(mixed_NLA.transpose(0, 1).flatten(1))
        change_FH, _ = self.linear_proj(torch.cat(mixed))
        return features_FH + change_FH


def seeded_generator() -> torch.Generator:
    """Of torch's seed alone, as in ``image_rows``."""
    return torch.Generator().manual_seed(torch.initial_seed())


@torch.no_grad()
def draw_rows(
    weight: torch.Tensor, rows: int, config: TransformerConfig, generator: torch.Generator
) -> None:
    """Draw the share of a column-parallel weight out of all of its rows."""
    whole = torch.randn((rows, weight.shape[1]), generator=generator, device="cpu")
    rank = parallel_state.get_tensor_model_parallel_rank()
    share = whole[rank * len(weight) :][: len(weight)]
    weight.copy_(share * config.init_method_std)
