import copy
import json

import pytest
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from megatron_llava.convert.families import vision_rules
from megatron_llava.convert.hf_config import mapping_from_hf
from megatron_llava.convert.hf_defaults import (
    ROPE_THETA_DEFAULT,
    TEXT_DEFAULTS,
    TOP_DEFAULTS,
    VISION_DEFAULTS,
)

PROCESSOR = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.26, 0.26, 0.27],
}
# As on the hub: only what differs from the defaults, and the older `rope_theta`.
CONFIG = {
    "model_type": "llava_next",
    "image_token_index": 32000,
    "text_config": {
        "model_type": "mistral",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
    },
}


@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig, Qwen2Config])
def test_text_defaults_are_those_of_transformers(config_class):
    config = config_class()
    derived = {"head_dim", "num_key_value_heads"}  # None means: derive from the heads
    if config_class is Qwen2Config:
        derived = {"sliding_window"}  # cleared while use_sliding_window is off
    for key, value in TEXT_DEFAULTS[config.model_type].items():
        assert key in derived or getattr(config, key) == value, key
    assert config.rope_parameters["rope_theta"] == ROPE_THETA_DEFAULT


@pytest.mark.parametrize("config_class", [CLIPVisionConfig, SiglipVisionConfig])
def test_vision_defaults_are_those_of_transformers(config_class):
    config = config_class()
    for key, value in VISION_DEFAULTS[config.model_type].items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("config_class", [LlavaConfig, LlavaNextConfig, LlavaOnevisionConfig])
def test_top_level_defaults_are_those_of_transformers(config_class):
    config = config_class()
    for key, value in TOP_DEFAULTS[config.model_type].items():
        found = getattr(config, key)
        if key in ("text_config", "vision_config"):
            found = {name: getattr(found, name) for name in value}
        assert found == value, key


def test_a_hub_config_is_completed():
    mapping = mapping_from_hf(CONFIG, PROCESSOR)
    expected = {
        "language_model_type": "mistral",
        "num_layers": 32,
        "hidden_size": 4096,
        "ffn_hidden_size": 14336,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "kv_channels": 128,
        "max_position_embeddings": 32768,
        "vocab_size": 32064,
        "norm_epsilon": 1e-5,
        "rotary_base": 1000000.0,
        "add_qkv_bias": False,
        "vision_model_type": "clip",
        "vision_num_layers": 24,
        "vision_hidden_size": 1024,
        "vision_ffn_hidden_size": 4096,
        "vision_num_attention_heads": 16,
        "vision_image_size": 336,
        "vision_patch_size": 14,
        "vision_norm_epsilon": 1e-5,
        "vision_hidden_act": "quick_gelu",
        "mm_vision_select_layer": -2,
        "mm_projector_type": "mlp2x_gelu",
        "hf_model_type": "llava_next",
        "image_newline": True,
        "multi_image_views": "as_single",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": TOP_DEFAULTS["llava_next"]["image_grid_pinpoints"],
        "pinpoint_order": "hw",
        "mm_patch_merge_type": "spatial_unpad",
        "unpad_round": "hf",
        "image_resize_mode": "shortest_edge_crop",
        "image_mean": [0.48, 0.45, 0.4],
        "image_std": [0.26, 0.26, 0.27],
        "image_token_index": 32000,
    }
    assert mapping == expected


def test_rope_is_read_from_old_and_new_files():
    config = copy.deepcopy(CONFIG)
    del config["text_config"]["rope_theta"]
    assert mapping_from_hf(config, PROCESSOR)["rotary_base"] == 10000.0
    config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6}
    assert mapping_from_hf(config, PROCESSOR)["rotary_base"] == 5e6


def test_tower_depth_follows_the_feature_layer():
    config = copy.deepcopy(CONFIG)
    for layer, built in ((-1, 24), (-2, 23), (-24, 1)):
        config["vision_feature_layer"] = layer
        mapping = mapping_from_hf(config, PROCESSOR) | {"untie_embeddings_and_output_weights": True}
        layers = {
            rule.megatron.split("layers.")[1].split(".")[0]
            for rule in vision_rules(mapping)
            if "layers." in rule.megatron
        }
        assert len(layers) == built


def set_in(config, path, value):
    *outer, last = path.split(".")
    for key in outer:
        config = config.setdefault(key, {})
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model_type", "llava_next_video"),
        ("quantization_config", {"bits": 4}),
        ("projector_hidden_act", "silu"),
        ("multimodal_projector_bias", False),
        ("vision_feature_layer", 23),
        ("vision_feature_layer", [-2, -5]),
        ("vision_feature_layer", -25),
        ("vision_feature_select_strategy", "full"),
        ("image_token_index", 32064),
        ("image_grid_pinpoints", [[336, 500]]),
        ("text_config.model_type", "gemma"),
        ("text_config.hidden_act", "gelu"),
        ("text_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        ("text_config.rope_parameters", {"rope_type": "llama3", "rope_theta": 1e6}),
        ("text_config.rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("text_config.partial_rotary_factor", 0.5),
        ("text_config.sliding_window", 4096),
        ("text_config.layer_types", ["sliding_attention"]),
        ("text_config.attention_bias", True),
        ("text_config.mlp_bias", True),
        ("text_config.num_key_value_heads", 5),
        ("text_config.num_attention_heads", 24),
        ("vision_config.model_type", "swin"),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 4),
        ("vision_config.image_size", [336, 336]),
        ("vision_config.num_attention_heads", 15),
        # Of another kind than it has to be.
        ("model_type", ["llava_next"]),
        ("projector_hidden_act", {}),
        ("image_token_index", "32000"),
        ("text_config", []),
        ("vision_config", "clip"),
        ("text_config.model_type", []),
        ("text_config.num_attention_heads", None),
        ("text_config.num_hidden_layers", "32"),
        ("text_config.vocab_size", True),
        ("text_config.num_key_value_heads", "8"),
        ("text_config.rms_norm_eps", -1e-6),
        ("text_config.rope_parameters", ["default"]),
        ("text_config.rope_theta", "1e6"),
        ("vision_config.num_attention_heads", 0),
        ("vision_config.num_hidden_layers", 24.0),
        ("image_token_id", 31999),
        ("image_grid_pinpoints", []),
        ("image_grid_pinpoints", 5),
        ("image_grid_pinpoints", [336, 672]),
        ("image_grid_pinpoints", [[336, 672, 336]]),
        ("image_grid_pinpoints", [[336, "672"]]),
        ("image_grid_pinpoints", [[336, 0]]),
        ("image_grid_pinpoints", "(1x1),...,(2x2)"),
        ("text_config.sliding_window", "4096"),
        ("text_config.layer_types", 5),
        ("text_config.layer_types", [["full_attention"]]),
    ],
)
def test_unsupported_settings_are_named(path, value):
    config = copy.deepcopy(CONFIG)
    set_in(config, path, value)
    with pytest.raises(ValueError) as caught:
        mapping_from_hf(config, PROCESSOR)
    assert path.split(".")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", None),
        ("image_std", [0.5]),
        ("rescale_factor", 0.5),
        ("do_normalize", False),
        ("resample", 2),
        ("size", {"shortest_edge": 224}),
        ("crop_size", {"height": 224, "width": 224}),
        ("image_grid_pinpoints", [[672, 336]]),
        ("image_grid_pinpoints", 5),
        ("image_mean", 0.5),
        ("image_mean", "rgb"),
        ("image_std", [0.5, 0.5, "0.5"]),
        ("image_std", [0.5, 0.5, True]),
        ("rescale_factor", None),
        ("size", None),
        ("size", {}),
        ("size", {"longest_edge": 336}),
        ("size", {"height": 336}),
        ("size", {"shortest_edge": 336, "height": 336, "width": 336}),
        ("size", [336, 336]),
        ("size", "336"),
        ("size", {"shortest_edge": "336"}),
        ("crop_size", [336, 336]),
    ],
)
def test_unsupported_image_processor_settings_are_named(key, value):
    with pytest.raises(ValueError, match=key) as caught:
        mapping_from_hf(CONFIG, PROCESSOR | {key: value})
    assert "\n" not in str(caught.value)


def test_a_processor_states_its_size():
    """Its class has a default, and classes differ in it."""
    without = {key: value for key, value in PROCESSOR.items() if key != "size"}
    with pytest.raises(ValueError, match="image processor: size is None; give shortest_edge, or"):
        mapping_from_hf(CONFIG, without)
    for size, mode in ((336, "shortest_edge_crop"), ({"height": 336, "width": 336}, "squash")):
        assert mapping_from_hf(CONFIG, without | {"size": size})["image_resize_mode"] == mode


@pytest.mark.parametrize("config_class", [LlavaConfig, LlavaNextConfig, LlavaOnevisionConfig])
def test_the_image_token_has_two_names(config_class):
    """Whichever a file has, transformers and we read it alike."""
    for key in ("image_token_index", "image_token_id"):
        rest = {name: value for name, value in CONFIG.items() if name != "image_token_index"}
        config = {**rest, "model_type": config_class.model_type, key: 31000}
        if config_class is LlavaOnevisionConfig:
            config |= {"vision_feature_select_strategy": "default", "vision_feature_layer": -2}
            config |= {"image_grid_pinpoints": [[336, 336]]}
        assert config_class.from_dict(config).image_token_index == 31000
        assert mapping_from_hf(config, PROCESSOR)["image_token_index"] == 31000


def test_mapping_is_plain_data():
    mapping = mapping_from_hf(CONFIG, PROCESSOR)
    assert json.loads(json.dumps(mapping)) == mapping
