"""Every class, text family and tower: HF to Megatron to HF bitwise, and the same logits."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from hf_layouts import LAYOUTS, rewrite
from safetensors.torch import load_file
from tiny_llava import MODEL_TYPES, TEXT_FAMILIES, TOWERS, tiny_llava

from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import LOGITS_THRESHOLD, verify_logits


def there_and_back(folder: Path, model_type: str, text: str, tower: str) -> dict[str, float]:
    """Differences of the logits; the tensors and files of the exported folder are checked.

    `verify_logits` refuses a folder in which transformers misses a tensor or finds one too many.
    """
    source, root, target = folder / "hf", folder / "root", folder / "exported"
    tiny_llava(source, model_type, text, tower)
    import_hf(source, root)
    verify(root, source)
    export_hf(root, target)
    before, after = HFReader(source), HFReader(target)
    assert after.layout == "hub" and after.names() == before.names()
    assert all(torch.equal(after.tensor(n), before.tensor(n)) for n in before.names())
    configs = [json.loads((where / "config.json").read_text()) for where in (source, target)]
    assert configs[0] == configs[1]
    return verify_logits(root, target)


def models() -> list:
    """All 63, of which every text family runs always, with the classes and the towers in turn."""
    marks = [pytest.mark.grid, pytest.mark.exhaustive], [pytest.mark.grid]
    always = {
        (MODEL_TYPES[number % 3], text, list(TOWERS)[(number + number // 3) % 3])
        for number, text in enumerate(TEXT_FAMILIES)
    }
    return [
        pytest.param(*model, marks=marks[model in always])
        for model in product(MODEL_TYPES, TEXT_FAMILIES, TOWERS)
    ]


@pytest.mark.proves("A9", "B2", "B7", "B13")
@pytest.mark.parametrize(("model_type", "text", "tower"), models())
def test_there_and_back(core_process, tmp_path, model_type, text, tower):
    differences = core_process(there_and_back, tmp_path, model_type, text, tower)
    assert max(differences.values()) <= LOGITS_THRESHOLD
    assert {"text alone", "image 1", "3 images"} <= set(differences)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_name_layout_of_every_class(core_process, tmp_path, model_type, layout):
    source = tiny_llava(tmp_path / "hf", model_type, "qwen2-tied", "siglip")
    other = rewrite(source, tmp_path / "other", layout)
    core_process(import_hf, other, tmp_path / "root")
    assert HFReader(other).layout == layout
    core_process(verify, tmp_path / "root", source)


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_in_the_format_of_torch(core_process, tmp_path, sharded):
    source = tiny_llava(tmp_path / "hf")
    other = tmp_path / "other"
    shutil.copytree(source, other, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = list(load_file(source / "model.safetensors").items())
    files = {"pytorch_model.bin": dict(tensors)}
    if sharded:
        files = {"a.bin": dict(tensors[:50]), "b.bin": dict(tensors[50:])}
        weight_map = {name: file for file, part in files.items() for name in part}
        index = other / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    for file, part in files.items():
        torch.save(part, other / file)
    core_process(import_hf, other, tmp_path / "root")
    core_process(verify, tmp_path / "root", source)
    last = other / list(files)[-1]
    last.write_bytes(last.read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"{last.name}: truncated or no file of tensors"):
        core_process(import_hf, other, tmp_path / "again")
    torch.save({"a": torch.zeros(1), "b": "text"}, last)
    with pytest.raises(ValueError, match="holds more than named tensors"):
        core_process(import_hf, other, tmp_path / "again")


@pytest.mark.proves("A2")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_each_class_means_for_images(core_process, tmp_path, model_type):
    core_process(import_hf, tiny_llava(tmp_path / "hf", model_type), tmp_path / "root")
    mapping = read_root_mapping(tmp_path / "root")
    expected = {
        "llava": ("square", "flat", "as_single", False),
        "llava_next": ("anyres", "spatial_unpad", "as_single", True),
        "llava_onevision": ("anyres_max_2", "spatial_unpad", "one_padded", True),
    }[model_type]
    keys = ("image_aspect_ratio", "mm_patch_merge_type", "multi_image_views", "image_newline")
    assert tuple(mapping[key] for key in keys) == expected
    assert mapping["hf_model_type"] == model_type


@pytest.mark.proves("B5")
def test_relu_between_the_linears_of_the_projector(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_next", projector_hidden_act="relu")
    core_process(import_hf, source, tmp_path / "root")
    assert read_root_mapping(tmp_path / "root")["mm_projector_type"] == "mlp2x_relu"
    core_process(export_hf, tmp_path / "root", tmp_path / "out")
    differences = core_process(verify_logits, tmp_path / "root", tmp_path / "out")
    assert max(differences.values()) <= LOGITS_THRESHOLD


def test_a_padding_processor_of_llava(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava")
    path = source / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    processor |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    path.write_text(json.dumps(processor))
    core_process(import_hf, source, tmp_path / "root")
    assert read_root_mapping(tmp_path / "root")["image_aspect_ratio"] == "pad"
    core_process(export_hf, tmp_path / "root", tmp_path / "out")
    core_process(verify_logits, tmp_path / "root", tmp_path / "out")
