import dataclasses

import pytest
import yaml

from megatron_llava.config.model_yaml import fill_model_from, model_to_yaml
from megatron_llava.config.run import RunConfig


def test_written_then_filled_is_the_same_model(make_config):
    written = make_config()
    mapping = yaml.safe_load(model_to_yaml(written))
    assert set(mapping) == {"language", "vision", "image"}
    assert "kv_channels" not in mapping["language"]
    filled = fill_model_from(RunConfig(), mapping, "model.yaml")
    for group in ("language", "vision", "image"):
        assert getattr(filled, group) == getattr(written, group)
    assert filled.explicit == set()
    assert filled.sources["hidden_size"] == "checkpoint"
    assert filled.optimizer == RunConfig().optimizer


def test_the_default_of_an_architecture_field_yields_to_the_checkpoint():
    filled = fill_model_from(RunConfig(), {"pinpoint_order": "hw"}, "model.yaml")
    assert filled.image.pinpoint_order == "hw"


def test_an_explicit_flag_that_contradicts_the_weights():
    config = RunConfig().with_values({"hidden_size": 64}, "flag")
    with pytest.raises(ValueError) as raised:
        fill_model_from(config, {"language": {"hidden_size": 32}}, "ckpt/model.yaml")
    for part in ("--hidden-size 64", "hidden_size 32", "ckpt/model.yaml"):
        assert part in str(raised.value)
    assert fill_model_from(config, {"hidden_size": 64}, "m").language.hidden_size == 64


def test_a_contradiction_from_a_file_names_that_file_too():
    config = dataclasses.replace(RunConfig(), config_file="run.yaml")
    config = config.with_values({"vision_model_type": "clip"}, "file")
    with pytest.raises(
        ValueError, match="--vision-model-type clip in run.yaml contradicts .*siglip"
    ):
        fill_model_from(config, {"vision": {"vision_model_type": "siglip"}}, "model.yaml")


def test_explicit_image_and_starting_values_win():
    mapping = {
        "language": {"init_method_std": 0.01, "make_vocab_size_divisible_by": 64},
        "image": {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
    }
    given = {"image_aspect_ratio": "anyres_max_9", "init_method_std": 0.5}
    filled = fill_model_from(RunConfig().with_values(given, "flag"), mapping, "model.yaml")
    assert filled.image.image_aspect_ratio == "anyres_max_9"
    assert filled.image.mm_patch_merge_type == "spatial_unpad"
    assert filled.language.init_method_std == 0.5
    assert filled.language.make_vocab_size_divisible_by == 64
    assert filled.sources["image_aspect_ratio"] == "flag"


@pytest.mark.parametrize("ratio", ["square", "pad"])
def test_one_view_leaves_the_checkpoints_grid(ratio):
    image = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672]]}
    mapping = {"image": image | {"grid_choice": "aspect_ratio"}}
    config = RunConfig().with_values({"image_aspect_ratio": ratio}, "flag")
    filled = fill_model_from(config, mapping, "m").image
    assert (filled.image_grid_pinpoints, filled.grid_choice) == (None, "resolution")
    assert fill_model_from(RunConfig(), mapping, "m").image.image_grid_pinpoints == "[[336, 672]]"


def test_a_list_of_the_users_is_not_read_in_the_checkpoints_order():
    mapping = {"image": {"pinpoint_order": "hw", "image_grid_pinpoints": [[336, 672]]}}
    assert fill_model_from(RunConfig(), mapping, "m").image.pinpoint_order == "hw"
    config = RunConfig().with_values({"image_grid_pinpoints": "[[672, 336]]"}, "flag")
    assert fill_model_from(config, mapping, "m").image.pinpoint_order == "wh"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"language": {"hiden_size": 4}}, "model.yaml: unknown key hiden_size; did you mean"),
        ({"lr": 1.0}, "model.yaml: lr belongs to optimizer"),
        ({"language": {"hidden_size": "wide"}}, "model.yaml: hidden_size needs an integer"),
    ],
)
def test_a_bad_model_yaml(mapping, message):
    with pytest.raises(ValueError, match=message):
        fill_model_from(RunConfig(), mapping, "model.yaml")
