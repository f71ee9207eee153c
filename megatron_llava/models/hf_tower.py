"""Vision towers of transformers: the same weights and the same computation, on every rank.

Shape suffixes: see tower.py; L encoder rows per view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.model import VisionConfig
from megatron_llava.models.tower import Tower
from megatron_llava.vision.hf_tower import HFTowerParts, hf_name


class HFTower(Tower):
    """Embeddings and layers of a model of transformers, up to the selected hidden state.

    Rows in front of the patches take part in attention and are dropped from the result, as
    ``vision_feature_select_strategy`` "default" does with the one of a class token.

    Args:
        config, whole_on_each_rank, views_at_once: see Tower.
        vision: the tower's kind and settings.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vision: VisionConfig,
        *,
        whole_on_each_rank: bool = False,
        views_at_once: int | None = None,
    ) -> None:
        assert vision.vision_model_type is not None and vision.vision_patch_size is not None
        assert vision.vision_hf_config is not None and vision.built_layers is not None
        super().__init__(
            config,
            vision.vision_patch_size,
            whole_on_each_rank=whole_on_each_rank,
            views_at_once=views_at_once,
        )
        self.kind, self.front_rows = vision.vision_model_type, vision.kind.front_rows
        parts = HFTowerParts(vision.vision_model_type, vision.vision_hf_config, vision.built_layers)
        parts.to(config.params_dtype)
        self.embeddings, self.layers = parts.embeddings, parts.layers
        if whole_on_each_rank:
            self.mark_whole()

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Core's description of the weights, under the names that files of transformers have: those
        of its modules change from version to version."""
        state = super().sharded_state_dict(prefix, *args, **kwargs)
        for name, entry in state.items():
            entry.key = prefix + hf_name(self.kind, name.removeprefix(prefix))
        return state

    def encode(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        hidden_VLD = self.embeddings(self._pixels(patches_VTK))
        start = 0
        for end, again in self._steps():
            layers = self.layers[start:end]
            if again and torch.is_grad_enabled():
                hidden_VLD = checkpoint(partial(_through, layers), False, hidden_VLD)
            else:
                hidden_VLD = _through(layers, hidden_VLD)
            start = end
        return hidden_VLD[:, self.front_rows :]

    def _steps(self) -> list[tuple[int, bool]]:
        """Where each run of layers ends, and whether the run is computed again in the backward: as
        core has it, 'uniform' runs of so many layers, or 'block', single ones of the first."""
        count, config = len(self.layers), self.config
        if config.recompute_granularity != "full":
            return [(count, False)]
        number = config.recompute_num_layers
        if config.recompute_method == "block":
            again = min(number, count)
            return [(layer + 1, True) for layer in range(again)] + [(count, False)]
        return [(end, True) for end in range(number, count + 1, number)]

    def _pixels(self, patches_VTK: torch.Tensor) -> torch.Tensor:
        """The views [V, 3, H, H] that patches were cut from, without the pixels behind the last."""
        views, count, _ = patches_VTK.shape
        grid, patch = math.isqrt(count), self.patch_size
        cut = patches_VTK.reshape(views, grid, grid, 3, patch, patch)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(views, 3, grid * patch, grid * patch)


def _through(layers: Iterable[torch.nn.Module], hidden_VLD: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        hidden_VLD = layer(hidden_VLD)
    return hidden_VLD
