import json

import pytest
import torch
from hf_layouts import LAYOUTS, rename
from safetensors.torch import save_file

from megatron_llava.convert.hf_reader import HFReader, detect_layout, hub_name

NAMES = [
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
    "vision_tower.pre_layrnorm.weight",
    "multi_modal_projector.linear_1.weight",
    "image_newline",
]
HUB_NAMES = sorted(rename(name, "hub") for name in NAMES)


def tensors(names):
    return {name: torch.full((2, 2), float(number)) for number, name in enumerate(names)}


def two_shards(overlap=0):
    return {"a.safetensors": tensors(NAMES[:3]), "b.safetensors": tensors(NAMES[3 - overlap :])}


def write_shards(folder, shards, weight_map=None):
    for file_name, content in shards.items():
        save_file(content, folder / file_name)
    if weight_map is None:
        weight_map = {name: file for file, content in shards.items() for name in content}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_under_hub_names(tmp_path, layout):
    stored = [rename(name, layout) for name in NAMES]
    assert detect_layout(stored) == layout
    save_file(tensors(stored), tmp_path / "model.safetensors")
    reader = HFReader(tmp_path)
    assert reader.layout == layout
    assert reader.names() == HUB_NAMES
    for number, name in enumerate(NAMES):
        found = reader.tensor(rename(name, "hub"))
        assert torch.equal(found, torch.full((2, 2), float(number)))
    assert reader.shape("image_newline") == (2, 2)
    assert reader.dtype("image_newline") == torch.float32


def test_hub_name_of_the_text_model_keeps_the_inner_model():
    assert hub_name("model.language_model.norm.weight", "model") == (
        "language_model.model.norm.weight"
    )


def test_shards_are_read_through_the_index(tmp_path):
    write_shards(
        tmp_path, {"a.safetensors": tensors(NAMES[:3]), "b.safetensors": tensors(NAMES[3:])}
    )
    reader = HFReader(tmp_path)
    assert reader.names() == HUB_NAMES
    assert "a.safetensors: vision_tower.pre_layrnorm" in reader.source(
        "vision_tower.vision_model.pre_layrnorm.weight"
    )


def refused(folder, *words):
    with pytest.raises(ValueError) as caught:
        HFReader(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_a_truncated_shard_is_named(tmp_path):
    write_shards(
        tmp_path, {"a.safetensors": tensors(NAMES[:3]), "b.safetensors": tensors(NAMES[3:])}
    )
    shard = tmp_path / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    refused(tmp_path, "b.safetensors", "truncated")
    shard.write_bytes(b"")
    refused(tmp_path, "b.safetensors", "truncated", "0 bytes")


def test_an_index_that_names_an_absent_file(tmp_path):
    write_shards(
        tmp_path, {"a.safetensors": tensors(NAMES[:3]), "b.safetensors": tensors(NAMES[3:])}
    )
    (tmp_path / "b.safetensors").unlink()
    refused(tmp_path, "index.json", "b.safetensors", "2 tensors")


def test_a_tensor_in_two_shards(tmp_path):
    write_shards(
        tmp_path, {"a.safetensors": tensors(NAMES[:3]), "b.safetensors": tensors(NAMES[2:])}
    )
    refused(tmp_path, "vision_tower.pre_layrnorm.weight", "safetensors")


def test_names_of_two_layouts(tmp_path):
    names = [rename(name, "model") for name in NAMES] + ["language_model.lm_head.weight"]
    save_file(tensors(names), tmp_path / "model.safetensors")
    refused(tmp_path, "two name layouts", "language_model.lm_head.weight")


def test_two_names_for_the_same_tensor(tmp_path):
    content = tensors(["image_newline", "model.image_newline", "model.language_model.norm.weight"])
    save_file(content, tmp_path / "model.safetensors")
    refused(tmp_path, "image_newline", "again")


def test_a_half_flat_tower(tmp_path):
    content = tensors([*NAMES, "vision_tower.vision_model.post_layernorm.weight"])
    save_file(content, tmp_path / "model.safetensors")
    refused(tmp_path, "two name layouts", "vision_tower.pre_layrnorm.weight")


def test_index_and_shards_that_disagree(tmp_path):
    shards = two_shards()
    everything = {name: file for file, content in shards.items() for name in content}
    write_shards(tmp_path, shards, everything | {"gone": "a.safetensors"})
    refused(tmp_path, "a.safetensors", "gone")
    del everything["image_newline"]
    write_shards(tmp_path, shards, everything)
    refused(tmp_path, "b.safetensors", "image_newline", "no file")


def test_other_folders_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "nowhere")
    refused(tmp_path, "neither model.safetensors nor")
    save_file(tensors(["model.mm_projector.0.weight"]), tmp_path / "model.safetensors")
    assert HFReader(tmp_path).layout == "original"
    (tmp_path / "model.safetensors.index.json").write_text("{")
    refused(tmp_path, "both")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "weight_map")
