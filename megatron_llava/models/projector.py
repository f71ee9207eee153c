"""The projectors from the vision tower's width to the language model's."""

from __future__ import annotations

from itertools import pairwise

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.projector import ProjectorShape
from megatron_llava.models.specs import Norm, mlp_submodules


class Projector(MegatronModule):
    """LLaVA's ``mlp2x_gelu``: Linear, exact-erf GELU, Linear; column- then row-parallel.

    Args:
        config: hidden and intermediate width are the language model's.
        vision_hidden_size: width of the features that come in.
    """

    def __init__(self, config: TransformerConfig, vision_hidden_size: int) -> None:
        super().__init__(config=config)
        self.encoder = MLP(
            config,
            mlp_submodules(),
            input_size=vision_hidden_size,
            ffn_hidden_size=config.ffn_hidden_size,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features [..., vision width] to [..., language width]."""
        output, bias = self.encoder(features)
        return output + bias


class ResidualBlock(MegatronModule):
    """y = n + W2 act(W1 n) with n = LayerNorm(x): the original code adds to what it normalised."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config=config)
        self.norm = Norm(config, config.hidden_size)
        self.mlp = MLP(config, mlp_submodules(), ffn_hidden_size=config.ffn_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., language width] to the same."""
        normed = self.norm(features)
        output, bias = self.mlp(normed)
        return normed + output + bias


class DeepProjector(MegatronModule):
    """Any number of linears with activations between, then residual blocks.

    Linears are column- and row-parallel in turn; where the last one is column-parallel, its output
    is gathered.

    Args:
        config: as for Projector.
        vision_hidden_size: width of the features that come in.
        shape: how many linears and blocks.
    """

    def __init__(
        self, config: TransformerConfig, vision_hidden_size: int, shape: ProjectorShape
    ) -> None:
        super().__init__(config=config)
        hidden = config.hidden_size
        self.linears = [f"linear_{number}" for number in range(1, shape.linears + 1)]
        self.blocks = [f"block_{number}" for number in range(1, shape.blocks + 1)]
        widths = [vision_hidden_size] + [hidden] * shape.linears
        # Attributes, not a list of modules: core splits the checkpoint of a module's own children.
        for number, (name, (width_in, width_out)) in enumerate(
            zip(self.linears, pairwise(widths), strict=True)
        ):
            common = {
                "config": config,
                "init_method": config.init_method,
                "bias": True,
                "skip_bias_add": False,
            }
            is_last = number == shape.linears - 1
            layer: torch.nn.Module
            if number % 2:
                layer = RowParallelLinear(width_in, width_out, input_is_parallel=True, **common)
            else:
                layer = ColumnParallelLinear(width_in, width_out, gather_output=is_last, **common)
            self.add_module(name, layer)
        for name in self.blocks:
            self.add_module(name, ResidualBlock(config))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features [..., vision width] to [..., language width]."""
        for number, name in enumerate(self.linears):
            if number:
                features = self.config.activation_func(features)
            features, _ = getattr(self, name)(features)
        for name in self.blocks:
            features = getattr(self, name)(features)
        return features


def build_projector(
    config: TransformerConfig, vision_hidden_size: int, shape: ProjectorShape
) -> Projector | DeepProjector:
    """The projector of a shape; two linears without blocks are an MLP of core."""
    if shape.linears == 2 and not shape.blocks:
        return Projector(config, vision_hidden_size)
    return DeepProjector(config, vision_hidden_size, shape)
