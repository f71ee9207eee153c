"""``--model``: sizes of published models, counted by transformers and by our own builder's formula.

The counts are the published ones: those of each model's card on the Hugging Face Hub.
"""

import pytest
import torch
import transformers

from megatron_llava.config.cli import parse_args
from megatron_llava.config.model_yaml import fill_model_from, fill_named_model
from megatron_llava.config.presets import (
    LANGUAGE_MODELS,
    RECIPES,
    VISION_TOWERS,
    model_values,
)
from megatron_llava.config.run import RunConfig
from megatron_llava.observe.parameters import part_parameters
from megatron_llava.training.start import architecture_from_checkpoint
from megatron_llava.vision.settings import image_settings

# name -> (parameters, what the card says, in 1e9). Tied weights are counted once; the card of
# Qwen1.5-0.5B counts both of its equal matrices, of 155,582,464 each.
COUNTS = {
    "vicuna-7b": (6_738_415_616, 6.74),
    "vicuna-13b": (13_015_864_320, 13.02),
    "mistral-7b": (7_241_732_096, 7.24),
    "yi-34b": (34_388_917_248, 34.39),
    "llama-3-8b": (8_030_261_248, 8.03),
    "qwen1.5-0.5b": (619_570_176 - 155_582_464, 0.46),
    "qwen1.5-1.8b": (1_836_828_672, 1.84),
    "qwen1.5-4b": (3_950_369_280, 3.95),
    "qwen1.5-7b": (7_721_324_544, 7.72),
    "qwen1.5-14b": (14_167_290_880, 14.17),
    "qwen1.5-72b": (72_287_920_128, 72.29),
    "qwen1.5-110b": (111_209_914_368, 111.21),
    "qwen2-0.5b": (494_032_768, 0.49),
    "qwen2-7b": (7_615_616_512, 7.62),
    "qwen2-72b": (72_706_203_648, 72.71),
}
TOWERS = {
    "clip-l-224": (303_179_776, 0.30),
    "clip-l-336": (303_507_456, 0.30),
    "so400m-384": (428_225_600, 0.43),
}


def test_every_model_has_a_count():
    assert set(COUNTS) == set(LANGUAGE_MODELS) and set(TOWERS) == set(VISION_TOWERS)


def named(model: str, **changes) -> RunConfig:
    """The configuration of a named model, its vocabulary without padding."""
    given = {"make_vocab_size_divisible_by": 1, **changes}
    return fill_named_model(RunConfig().with_values(given, "flag"), model)


def counted_on_meta(model_class: type, config: transformers.PretrainedConfig) -> int:
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.proves("B7")
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_has_the_published_parameters(name):
    exact, card = COUNTS[name]
    config = named(f"llava-next-{name}")
    language = config.language
    qwen = language.add_qkv_bias
    family = transformers.Qwen2Config if qwen else transformers.LlamaConfig
    sizes = family(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_query_groups,
        tie_word_embeddings=not language.untie_embeddings_and_output_weights,
    )
    model_class = transformers.Qwen2ForCausalLM if qwen else transformers.LlamaForCausalLM
    assert counted_on_meta(model_class, sizes) == exact
    assert round(exact / 1e9, 2) == card
    parameters = part_parameters(config, layers=language.num_layers, first=True, last=True)
    ours = sum(p.numel for p in parameters if p.name.startswith("language_model."))
    assert ours == exact


@pytest.mark.proves("B1")
@pytest.mark.parametrize("name", VISION_TOWERS)
def test_a_vision_tower_has_the_published_parameters(name):
    exact, card = TOWERS[name]
    config = named(f"llava-next-vicuna-7b+{name}")
    vision = config.vision
    clip = vision.vision_model_type == "clip"
    family = transformers.CLIPVisionConfig if clip else transformers.SiglipVisionConfig
    sizes = family(
        hidden_size=vision.vision_hidden_size,
        intermediate_size=vision.vision_ffn_hidden_size,
        num_hidden_layers=vision.vision_num_layers,
        num_attention_heads=vision.vision_num_attention_heads,
        image_size=vision.vision_image_size,
        patch_size=vision.vision_patch_size,
    )
    model_class = transformers.CLIPVisionModel if clip else transformers.SiglipVisionModel
    assert counted_on_meta(model_class, sizes) == exact
    assert round(exact / 1e9, 2) == card
    parameters = part_parameters(config, layers=1, first=True, last=False)
    ours = sum(p.numel for p in parameters if p.name.startswith("vision_model."))
    width, ffn = vision.vision_hidden_size, vision.vision_ffn_hidden_size
    layer = 4 * width * width + 2 * width * ffn + 9 * width + ffn
    # The last layer is not built, nor the norm behind it, nor SigLIP's pooling head.
    head = 0 if clip else width + layer - 2 * width
    assert ours == exact - layer - 2 * width - head


@pytest.mark.proves("B8")
@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("llava-next-vicuna-7b", 7.06),
        ("llava-next-vicuna-13b", 13.35),
        ("llava-next-yi-34b", 34.75),
        ("llava-next-llama-3-8b", 8.35),
        ("llava-next-qwen1.5-72b", 72.7),
        ("llava-next-qwen1.5-110b", 111.6),
        ("llava-onevision-qwen2-0.5b", 0.894),
    ],
)
def test_the_whole_model_is_as_large_as_the_papers_say(name, total):
    config = named(name)
    layers = config.language.num_layers
    numbers = [p.numel for p in part_parameters(config, layers=layers, first=True, last=True)]
    assert sum(numbers) / 1e9 == pytest.approx(total, rel=0.004)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tower", ["", *(f"+{name}" for name in VISION_TOWERS)])
def test_the_image_settings_of_every_combination_hold(recipe, tower):
    settings = image_settings(named(f"{recipe}-vicuna-7b{tower}"))
    assert settings.uses_grid == (recipe != "llava-1.5")
    if recipe == "llava-next":
        tiles = {
            (w // settings.tile_size, h // settings.tile_size) for w, h in settings.grid_pinpoints
        }
        assert tiles == {(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)}


def test_flags_win_over_the_named_model(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: llava-next-vicuna-7b\nvision_num_layers: 3\n")
    config = parse_args([f"--config={file}", "--num-layers=2", "--image-aspect-ratio=pad"])
    config = architecture_from_checkpoint(config)
    assert (config.language.num_layers, config.vision.vision_num_layers) == (2, 3)
    assert (config.language.hidden_size, config.sources["hidden_size"]) == (4096, "model")
    assert config.image.image_grid_pinpoints is None


def test_a_checkpoint_of_another_model_is_refused():
    config = named("llava-next-vicuna-7b")
    with pytest.raises(ValueError, match=r"num_layers 32.*contradicts 40 in c/model.yaml"):
        fill_model_from(config, {"num_layers": 40}, "c/model.yaml")
    with pytest.raises(ValueError, match="vocab_size 32000.*contradicts 31999"):
        fill_model_from(config, {"vocab_size": 31999}, "m")
    with pytest.raises(ValueError, match="mm_vision_select_layer -2.*contradicts -1"):
        fill_model_from(config, {"vision_num_layers": 24, "mm_vision_select_layer": -1}, "m")


def test_a_checkpoint_with_more_tokens_or_without_unused_layers_is_the_same_model():
    config = named("llava-onevision-qwen2-7b")
    stored = {
        "vocab_size": 152128,
        "vision_num_layers": 26,
        "mm_vision_select_layer": -1,
        "image_aspect_ratio": "anyres_max_4",
    }
    filled = fill_model_from(config, stored, "m")
    assert {name: filled.get(name) for name in stored} == stored
    assert filled.vision.built_layers == config.vision.built_layers == 26


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vicuna-7b", "does not start with one of llava-1.5, llava-next, llava-onevision"),
        ("llava-next-vicuna-8b", "'vicuna-8b' is no language model.*did you mean vicuna-7b?"),
        ("llava-next-vicuna-7b+clip", "'clip' is no vision tower of clip-l-224"),
    ],
)
def test_a_name_that_is_not_known(name, message):
    with pytest.raises(ValueError, match=message):
        model_values(name)
