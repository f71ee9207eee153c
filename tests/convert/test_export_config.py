import json

import pytest
import torch
from tiny_checkpoints import tiny_llava_next

from megatron_llava.convert.export_config import check_fixed, hf_pinpoints, write_hf_side_files
from megatron_llava.convert.hf_folder import read_image_processor, read_mapping
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.root_files import read_root_mapping, write_root_files

HF_GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llava_next(tmp_path_factory.mktemp("hf"), "llama", "clip")


@pytest.fixture
def mapping(source, tmp_path):
    """The mapping as it comes back from the root of a checkpoint."""
    root = tmp_path / "root"
    root.mkdir()
    write_root_files(root, read_mapping(source, HFReader(source)), {}, torch.float32)
    return read_root_mapping(root)


def test_the_mapping_survives_the_root_files(source, mapping):
    stated = read_mapping(source, HFReader(source))
    assert {name: mapping[name] for name in stated} | {"image_mean": 0, "image_std": 0} == (
        stated | {"image_mean": 0, "image_std": 0}
    )
    assert list(mapping["image_mean"]) == stated["image_mean"]
    assert list(mapping["image_std"]) == stated["image_std"]
    assert mapping["params_dtype"] == "float32"


def test_pinpoints_keep_the_order_of_the_file_and_flip_from_ours(mapping):
    assert hf_pinpoints(mapping) == HF_GRIDS
    mapping |= {"image_grid_pinpoints": "[[56, 112], [112, 112]]", "pinpoint_order": "wh"}
    assert hf_pinpoints(mapping) == [[112, 56], [112, 112]]
    mapping["image_grid_pinpoints"] = "(1x1),...,(1x2)"
    assert hf_pinpoints(mapping) == [[56, 56], [112, 56]]


def test_unchanged_settings_are_copied(source, mapping, tmp_path):
    write_hf_side_files(source, tmp_path / "out", mapping, torch.float32)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in source.iterdir()} - {"model.safetensors"}
    for name in names - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    configs = [
        json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out")
    ]
    assert configs[0] == configs[1]


def test_new_grids_reach_config_and_processor(source, mapping, tmp_path):
    mapping |= {"image_grid_pinpoints": "[[56, 112], [112, 112]]", "pinpoint_order": "wh"}
    write_hf_side_files(source, tmp_path / "out", mapping, torch.float32)
    grids = [[112, 56], [112, 112]]
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["image_grid_pinpoints"] == grids
    )
    assert read_image_processor(tmp_path / "out")["image_grid_pinpoints"] == grids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 3),
        ("rotary_base", 5e5),
        ("image_aspect_ratio", "anyres_max_9"),
        ("mm_patch_merge_type", "flat"),
        ("grid_choice", "aspect_ratio"),
        ("unpad_round", "llava"),
        ("pad_tolerance", 0.1),
        ("pad_aspect_ratio", 1.5),
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_resize_mode", "squash"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(
    source, mapping, tmp_path, field, value
):
    with pytest.raises(ValueError, match=field):
        write_hf_side_files(source, tmp_path / "out", mapping | {field: value}, torch.float32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_newline_position", "grid"),
        ("mm_spatial_pool_mode", "average"),
        ("mm_spatial_pool_stride", 1),
    ],
)
def test_videos_that_onevision_of_transformers_would_compute_otherwise(mapping, field, value):
    check_fixed(mapping | {"unpad_round": "hf"}, "llava_onevision")
    with pytest.raises(ValueError, match=f"{field} is {value}, which llava_onevision"):
        check_fixed(mapping | {"unpad_round": "hf", field: value}, "llava_onevision")
    check_fixed(mapping | {field: value}, "llava_next")  # has no videos
