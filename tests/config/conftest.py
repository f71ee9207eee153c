"""A configuration that passes every rule, to be changed by one thing."""

from collections.abc import Callable
from typing import Any

import pytest

from megatron_llava.config.run import RunConfig

VALID: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 8,
    "num_query_groups": 2,
    "max_position_embeddings": 512,
    "vocab_size": 1000,
    "norm_epsilon": 1e-6,
    "rotary_base": 1e6,
    "add_qkv_bias": True,
    "untie_embeddings_and_output_weights": False,
    "vision_model_type": "clip",
    "vision_num_layers": 3,
    "vision_hidden_size": 32,
    "vision_ffn_hidden_size": 64,
    "vision_num_attention_heads": 4,
    "vision_image_size": 56,
    "vision_patch_size": 14,
    "vision_norm_epsilon": 1e-5,
    "vision_hidden_act": "quick_gelu",
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "(1x1),...,(2x2)",
    "mm_patch_merge_type": "spatial_unpad",
    "data_path": "store",
    "seq_length": 256,
    "lr": 1e-3,
    "train_iters": 100,
}


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """A function from changes (field=value) to the valid configuration with those changes."""

    def make(**changes: Any) -> RunConfig:
        return RunConfig().with_values({**VALID, **changes}, "flag")

    return make
