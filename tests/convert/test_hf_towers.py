"""Towers that transformers computes: the same weights, logits and gradients, whatever the class."""

import json

import pytest
import torch
from stage0_parts import language_model
from tiny_checkpoints import randomise
from tiny_llava import HF_TOWERS, MODEL_TYPES, tiny_llava, vision_config
from tiny_model import tiny_config

from megatron_llava.config.towers import HF_TOWERS as KINDS
from megatron_llava.config.towers import TOWERS
from megatron_llava.config.validate import validate
from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.hf_start import hf_model_fields
from megatron_llava.convert.llava_checkpoint import export_llava
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.stage0 import Stage0, merge_to_hf, merge_to_megatron
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import LOGITS_THRESHOLD, verify_logits

pytestmark = pytest.mark.proves("B3")


@pytest.mark.parametrize(
    ("model_type", "tower"),
    [("llava_next", tower) for tower in HF_TOWERS]
    + [(kind, "dinov2") for kind in MODEL_TYPES[1:]]
    + [(kind, "aimv2-native") for kind in MODEL_TYPES[1:]],
)
def test_a_model_of_transformers_comes_and_goes(core_process, tmp_path, model_type, tower):
    from transformers import AutoModelForImageTextToText

    source = tiny_llava(tmp_path / "hf", model_type, "qwen2", tower)
    core_process(import_hf, source, tmp_path / "root")
    report = core_process(verify, tmp_path / "root", source)
    assert report.ignored == [0, 0]
    assert max(core_process(verify_logits, tmp_path / "root", source).values()) <= LOGITS_THRESHOLD
    core_process(export_hf, tmp_path / "root", tmp_path / "back")
    _, loading = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(loading.values()), loading
    before, after = HFReader(source), HFReader(tmp_path / "back")
    assert before.names() == after.names()
    assert all(torch.equal(before.tensor(name), after.tensor(name)) for name in before.names())


def stored_names(root):
    from megatron.core import dist_checkpointing

    return list(dist_checkpointing.load_tensors_metadata(str(root / "release")))


def test_a_checkpoint_has_the_names_of_files(core_process, tmp_path):
    """So that it outlives the names of modules, which transformers changes."""
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "dinov2")
    core_process(import_hf, source, tmp_path / "root")
    found = core_process(stored_names, tmp_path / "root")
    of_tower = {name.removeprefix("vision_model.") for name in found if "vision_model" in name}
    theirs = {name.removeprefix("vision_tower.vision_model.") for name in HFReader(source).names()}
    assert of_tower and of_tower <= theirs
    assert "encoder.layer.1.attention.attention.query.weight" in of_tower


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_transformers(kind):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(TOWERS[kind].hf_model_type).to_dict()
    parts = TOWERS[kind].hf
    for key, value in (parts.defaults | parts.fixed).items():
        assert theirs[key] == value, key


def test_the_mapping_keeps_every_setting(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "dinov2-rest")
    core_process(import_hf, source, tmp_path / "root")
    mapping = read_root_mapping(tmp_path / "root")
    settings = json.loads(mapping["vision_hf_config"])
    assert not settings["qkv_bias"] and settings["mlp_ratio"] == 3
    assert (mapping["vision_model_type"], mapping["vision_ffn_hidden_size"]) == ("dinov2", 96)


@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("dinov2", {}),
        ("dinov2", {"use_mask_token": False}),
        ("aimv2", {}),
        ("aimv2", {"use_head": False}),
    ],
)
def test_a_start_with_such_a_tower(core_process, tmp_path, tower, changes):
    from transformers import AutoModel, AutoModelForImageTextToText

    config = vision_config(tower)
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModel.from_config(config)
    randomise(model, 4)
    model.save_pretrained(tmp_path / "tower")
    settings = Stage0(
        language_model=language_model(tmp_path / "llm", "qwen2"),
        vision_tower=tmp_path / "tower",
        model_type="llava_onevision",
    )
    core_process(merge_to_hf, settings, tmp_path / "hf")
    _, loading = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(loading.values()), loading
    core_process(merge_to_megatron, settings, tmp_path / "root")
    core_process(verify, tmp_path / "root", tmp_path / "hf")
    differences = core_process(verify_logits, tmp_path / "root", tmp_path / "hf")
    assert max(differences.values()) <= LOGITS_THRESHOLD
    mean = read_root_mapping(tmp_path / "root")["image_mean"]
    assert list(mean) == list(TOWERS[tower].image_mean_std[0])


@pytest.mark.parametrize(
    ("tower", "key", "message"),
    [
        ("dinov2", "image_size", r"image_size is 224 \(257 positions\), but .*tower.* has 17 rows"),
        ("dinov2", "num_hidden_layers", "num_hidden_layers is 12, but .* tensors of 3 layers"),
        ("aimv2", "image_size", r"image_size is 224 \(256 positions\), but .*tower.* has 16 rows"),
    ],
)
def test_a_size_that_config_json_lacks(tmp_path, tower, key, message):
    from transformers import AutoModel

    AutoModel.from_config(vision_config(tower)).save_pretrained(tmp_path / "tower")
    path = tmp_path / "tower" / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    text, tower = language_model(tmp_path / "llm", "qwen2"), tmp_path / "tower"
    settings = Stage0(language_model=text, vision_tower=tower, model_type="llava_next")
    with pytest.raises(ValueError, match=f"config.json: vision_config.{message}") as caught:
        merge_to_megatron(settings, tmp_path / "root")
    assert "\n" not in str(caught.value)


def test_what_such_a_tower_cannot(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "dinov2")
    core_process(import_hf, source, tmp_path / "root")
    with pytest.raises(ValueError, match="dinov2, of which the original LLaVA code has no tower"):
        core_process(export_llava, tmp_path / "root", tmp_path / "llava")
    with pytest.raises(ValueError, match="--vision-image-size 70: of dinov2 towers"):
        core_process(import_hf, source, tmp_path / "other", image_size=70)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "root"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("drop_path_rate", 0.1, "vision_config.drop_path_rate is 0.1; supported: 0.0"),
        ("use_swiglu_ffn", True, "vision_config.use_swiglu_ffn is True; supported: False"),
        ("hidden_size", -8, "vision_config.hidden_size is -8; give one such as 768"),
        ("num_attention_heads", 5, "hidden_size is 32, no multiple of num_attention_heads 5"),
        ("num_attention_heads", 0, "vision_config.num_attention_heads is 0; give 1 or more"),
        ("patch_size", 0, "vision_config.patch_size is 0; give 1 or more"),
        ("mlp_ratio", 2.5, "vision_config.mlp_ratio is 2.5; give one such as 4"),
        ("qkv_bias", 1, "vision_config.qkv_bias is 1; give one such as True"),
    ],
)
def test_settings_that_are_not_computed(tmp_path, key, value, message):
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "dinov2")
    path = source / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        hf_model_fields(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


SETTINGS = {"vision_model_type": "dinov2", "vision_hf_config": "{}"}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({"vision_hf_config": "{}"}, 1, "--vision-hf-config is of a tower that transformers"),
        ({"vision_model_type": "dinov2"}, 1, "dinov2 needs --vision-hf-config"),
        ({**SETTINGS, "tensor_model_parallel_size": 2}, 2, "add --vision-parallel data"),
        (
            {**SETTINGS, "recompute_activations": True, "recompute_vision": True},
            1,
            "--recompute-vision: --vision-model-type dinov2 is computed by transformers",
        ),
        ({**SETTINGS, **FULL, "recompute_vision": True}, 1, ""),
    ],
)
def test_rules(changes, ranks, message):
    config = tiny_config(data_path="store", seq_length=64, train_iters=1, lr=1e-3, **changes)
    if not message:
        return validate(config, ranks)
    with pytest.raises(ValueError) as caught:
        validate(config, ranks)
    assert message in str(caught.value) and "\n" not in str(caught.value)
