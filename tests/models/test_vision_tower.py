"""Towers at the sizes of the published views, few layers deep: features are transformers'."""

import pytest
import torch
from tiny_model import tiny_config

pytestmark = pytest.mark.usefixtures("single_rank")

WIDTH, FFN, HEADS, LAYERS = 24, 40, 2, 3
CLIP = {"vision_model_type": "clip", "vision_hidden_act": "quick_gelu"}
MAPPED = (
    "vision_model_type",
    "vision_num_layers",
    "vision_hidden_size",
    "vision_ffn_hidden_size",
    "vision_num_attention_heads",
    "vision_image_size",
    "vision_patch_size",
    "mm_vision_select_layer",
)
SIGLIP = {"vision_model_type": "siglip", "vision_hidden_act": "gelu_pytorch_tanh"}


def hf_tower(kind: str, side: int) -> torch.nn.Module:
    import transformers

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "image_size": side,
        "patch_size": 14,
    }
    if kind == "clip":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    else:
        config = transformers.SiglipVisionConfig(vision_use_head=False, **sizes)
        model = transformers.SiglipVisionModel(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.proves("B1", "B2")
@pytest.mark.parametrize(
    ("kind", "side", "tokens"), [(CLIP, 336, 576), (CLIP, 224, 256), (SIGLIP, 384, 729)]
)
@torch.no_grad()
def test_features_are_the_hidden_state_before_the_last_layer(kind, side, tokens):
    """Without CLIP's class token; 384 pixels are 27 patches, and six pixels that are not seen."""
    from megatron_llava.convert.families import VISION, vision_rules
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.ops.tiles_to_patches import pixel_table, tiles_to_patches
    from megatron_llava.vision.tiles import normalize_tiles

    sizes = {"vision_num_layers": LAYERS, "mm_vision_select_layer": -2, "vision_image_size": side}
    config = tiny_config(**kind, **sizes, image_grid_pinpoints=f"[[{side}, {side}]]")
    model, judge = build_llava_model(config), hf_tower(kind["vision_model_type"], side)
    tower = model.vision_model
    assert len(tower.decoder.layers) == LAYERS - 1
    weights = {
        VISION + name.removeprefix("vision_model."): w for name, w in judge.state_dict().items()
    }
    state = {
        rule.megatron.removeprefix("vision_model."): rule.to_megatron([weights[n] for n in rule.hf])
        for rule in vision_rules({name: config.get(name) for name in MAPPED})
    }
    tower.load_state_dict(state, strict=True)
    tiles = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    pixels = normalize_tiles(tiles, (0.5,) * 3, (0.5,) * 3, torch.float32)
    expected = judge(pixels, output_hidden_states=True).hidden_states[-2][:, -tokens:]
    table = pixel_table((0.5,) * 3, (0.5,) * 3, torch.float32)
    found = tower(tiles_to_patches(tiles, table, 14))
    assert found.shape == expected.shape == (2, tokens, WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
