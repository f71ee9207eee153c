"""The original LLaVA layout: in and out bitwise, with and without its tower; in transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from original_layout import projector_tensors, write_original
from safetensors.torch import load_file, save_file
from tiny_llava import TEXT_FAMILIES, TOWERS, tiny_llava

from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.llava_checkpoint import (
    export_llava,
    export_mm_projector,
    import_llava,
    open_llava,
)
from megatron_llava.convert.llava_config import width_first
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import LOGITS_THRESHOLD, verify_logits

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def there_and_back(source, tower, root, back, without_vision_tower):
    import_llava(source, root, vision_tower=tower)
    verify(root, open_llava(source, tower, None)[0])
    export_llava(root, back, without_vision_tower=without_vision_tower)


@pytest.mark.proves("B13", "C2", "E1")
@pytest.mark.parametrize("tower", ["clip-336", "siglip"])
@pytest.mark.parametrize("text", TEXT_FAMILIES)
def test_there_and_back_is_bitwise(core_process, tmp_path, text, tower):
    with_tower = (list(TEXT_FAMILIES).index(text) % 2 == 0) == (tower == "siglip")
    source, published = write_original(tmp_path, text, tower, with_tower=with_tower)
    back = tmp_path / "back"
    core_process(there_and_back, source, published, tmp_path / "root", back, not with_tower)
    assert_same(weights(back), weights(source))
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, back)]
    assert configs[0] == configs[1]


@pytest.mark.proves("B13")
@pytest.mark.parametrize("aspect", ["anyres", "anyres_max_2", "square", "pad"])
@pytest.mark.parametrize("tower", TOWERS)
def test_it_computes_the_same_in_transformers(core_process, tmp_path, tower, aspect):
    """Exported to the class that computes its images, with a token and rows that it lacked."""
    source, published = write_original(tmp_path, "qwen2", tower, aspect=aspect)
    root, target = tmp_path / "root", tmp_path / "hf"
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    without = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]
    tokenizer["added_tokens"] = without
    del tokenizer["model"]["vocab"]["<image>"]
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    core_process(import_llava, source, root, vision_tower=published)
    core_process(export_hf, root, target)
    expected = {"anyres": "llava_next", "anyres_max_2": "llava_onevision"}.get(aspect, "llava")
    written = json.loads((target / "config.json").read_text())
    assert written["model_type"] == expected
    core_process(verify, root, target)
    core_process(loads_completely, target)
    differences = core_process(verify_logits, root, target)
    assert max(differences.values()) <= LOGITS_THRESHOLD
    # And it is an ordinary folder of its class.
    core_process(import_hf, target, tmp_path / "again")
    mapping = read_root_mapping(tmp_path / "again")
    assert mapping["image_token_index"] == written["image_token_index"]


def loads_completely(folder):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    _, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    tokenizer = AutoTokenizer.from_pretrained(folder)
    index = json.loads((folder / "config.json").read_text())["image_token_index"]
    assert tokenizer.encode("a<image>b", add_special_tokens=False).count(index) == 1


@pytest.mark.parametrize("projector", ["linear", "mlp1x_gelu", "mlp3x_gelu", "mlp2x_res1x_gelu"])
def test_projectors_that_transformers_lacks(core_process, tmp_path, projector):
    source, published = write_original(tmp_path, projector=projector)
    root, back = tmp_path / "root", tmp_path / "back"
    core_process(there_and_back, source, published, root, back, False)
    assert_same(weights(back), weights(source))
    with pytest.raises(ValueError, match=f"mm_projector_type {projector}: the classes of transf"):
        core_process(export_hf, root, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.proves("B13")
@pytest.mark.parametrize(
    "prefix", ["model.mm_projector.", "mm_projector.", "base.model.mm_projector."]
)
def test_a_projector_file_in_and_out(core_process, tmp_path, prefix):
    source, published = write_original(tmp_path, with_tower=False)
    other = projector_tensors("mlp2x_gelu", 32, 64, seed=9)
    stored = {prefix + n.removeprefix("model.mm_projector."): t for n, t in other.items()}
    torch.save(stored, tmp_path / "mm_projector.bin")
    root = tmp_path / "root"
    core_process(
        import_llava,
        source,
        root,
        vision_tower=published,
        mm_projector=tmp_path / "mm_projector.bin",
    )
    core_process(export_mm_projector, root, tmp_path / "out")
    found = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    assert_same(found, other)
    with pytest.raises(ValueError, match="already exists"):
        core_process(export_mm_projector, root, tmp_path / "out")


def test_a_fine_tuned_tower_wins_over_the_published_one(core_process, tmp_path):
    source, published = write_original(tmp_path)
    changed = {name: tensor + 1 for name, tensor in weights(published).items()}
    (published / "model.safetensors").unlink()
    save_file(changed, published / "model.safetensors")
    core_process(there_and_back, source, published, tmp_path / "root", tmp_path / "back", False)
    assert_same(weights(tmp_path / "back"), weights(source))


@pytest.mark.proves("B13", "E1")
def test_from_transformers_to_the_original_code(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_onevision", "qwen2", "siglip")
    core_process(import_hf, source, tmp_path / "root")
    core_process(export_llava, tmp_path / "root", tmp_path / "llava")
    found, before = HFReader(tmp_path / "llava"), HFReader(source)
    assert found.layout == "original" and found.names() == before.names()
    assert all(torch.equal(found.tensor(n), before.tensor(n)) for n in before.names())
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["architectures"] == ["LlavaQwenForCausalLM"]
    assert config["image_aspect_ratio"] == "anyres_max_2"
    hf = json.loads((source / "config.json").read_text())
    assert config["image_grid_pinpoints"] == [pair[::-1] for pair in hf["image_grid_pinpoints"]]


@pytest.mark.parametrize(
    ("grids", "order", "written"),
    [
        ("(1x1),...,(2x2)", "wh", "(1x1),...,(2x2)"),
        ("[[336, 672]]", "wh", "[[336, 672]]"),
        ([[336, 672]], "hw", [[672, 336]]),
        ("336x{1x2,2x2}", "wh", [[336, 672], [672, 672]]),
        ("max_patches=2", "wh", [[336, 336], [672, 336]]),
    ],
)
def test_grids_are_written_as_the_original_code_reads_them(grids, order, written):
    mapping = {"image_grid_pinpoints": grids, "pinpoint_order": order, "vision_image_size": 336}
    assert width_first(mapping) == written


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_how_videos_were_trained_is_kept(core_process, tmp_path):
    source, published = write_original(tmp_path)
    edit_config(source, mm_newline_position="grid", mm_spatial_pool_mode="average")
    core_process(import_llava, source, tmp_path / "root", vision_tower=published)
    mapping = read_root_mapping(tmp_path / "root")
    assert mapping["mm_newline_position"] == "grid"
    assert mapping["mm_spatial_pool_mode"] == "average"
    core_process(export_llava, tmp_path / "root", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["mm_newline_position"] == "grid" and config["mm_spatial_pool_mode"] == "average"


@pytest.mark.proves("C2")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is true"),
        ({"mm_projector_type": "pooler"}, "mm_projector_type is 'pooler'; expected linear"),
        ({"mm_projector_type": "mlp3x_gelu"}, "missing multi_modal_projector"),
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "model_type is 'gemma'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ({"mm_vision_select_layer": -4}, "mm_vision_select_layer"),
        ({"vocab_size": 299}, "vocab_size is 299, but"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but"),
        ({"mm_patch_merge_type": "unires"}, "--mm-patch-merge-type unires"),
        ({"image_grid_pinpoints": [[56, 100]]}, "(56, 100)"),
        ({"mm_spatial_pool_mode": "sum"}, "--mm-spatial-pool-mode sum"),
        ({"mm_newline_position": "row"}, "--mm-newline-position row"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"architectures": 5, "model_type": "gemma"}, "architectures 5"),
        ({"image_aspect_ratio": 5}, "image_aspect_ratio is 5; give a name"),
        ({"image_aspect_ratio": [["anyres"]]}, "image_aspect_ratio is ['anyres']; give a name"),
        ({"image_grid_pinpoints": 5}, "image_grid_pinpoints is 5; give a list of pairs"),
        ({"image_grid_pinpoints": [56, 112]}, "image_grid_pinpoints is [56, 112]; give a list"),
        ({"image_grid_pinpoints": [["a", "b"]]}, "image_grid_pinpoints is [['a', 'b']]; give"),
        ({"mm_projector_type": 5}, "mm_projector_type is 5"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer is '-2'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ],
)
def test_configurations_that_do_not_fit(core_process, tmp_path, changes, words):
    source, published = write_original(tmp_path)
    edit_config(source, **changes)
    with pytest.raises(ValueError) as caught:
        core_process(import_llava, source, tmp_path / "root", vision_tower=published)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("preprocessor_config.json", "image_mean", 0.5, "image_mean is 0.5; give three numbers"),
        ("preprocessor_config.json", "image_std", [0.5], "image_std is [0.5]; give three numbers"),
        ("config.json", "vision_config", 5, "vision_config is 5; give an object"),
        ("config.json", "num_hidden_layers", "3", "num_hidden_layers is '3'"),
    ],
)
def test_a_tower_folder_that_is_damaged(core_process, tmp_path, name, key, value, words):
    source, published = write_original(tmp_path, with_tower=False)
    path = published / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError) as caught:
        core_process(import_llava, source, tmp_path / "root", vision_tower=published)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_asked_for(core_process, tmp_path):
    source, published = write_original(tmp_path, with_tower=False)
    with pytest.raises(ValueError, match="has no vision tower .*: give --vision-tower FOLDER"):
        core_process(import_llava, source, tmp_path / "root")
    with pytest.raises(ValueError, match="no CLIP or SigLIP vision model: it has lm_head.weight"):
        core_process(import_llava, source, tmp_path / "root", vision_tower=source)
    with pytest.raises(ValueError, match="tensor names of the original LLaVA code: give --from"):
        core_process(import_hf, source, tmp_path / "root")
    (tmp_path / "p.bin").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="p.bin: cannot be read as tensors"):
        core_process(
            import_llava,
            source,
            tmp_path / "root",
            vision_tower=published,
            mm_projector=tmp_path / "p.bin",
        )
    hf = tiny_llava(tmp_path / "hf")
    with pytest.raises(ValueError, match="tensor names of transformers: give --from hf"):
        core_process(import_llava, hf, tmp_path / "root")
    complete, _ = write_original(tmp_path / "complete")
    with pytest.raises(ValueError, match="mm_vision_tower is 'my/tower', of which nothing more"):
        core_process(import_llava, complete, tmp_path / "root")


def test_the_command_line(tmp_path):
    source, published = write_original(tmp_path, with_tower=False)
    root, back = tmp_path / "root", tmp_path / "back"
    command = [sys.executable, TOOL, "--from", "llava", "--to", "megatron", "--load", source]
    command += ["--save", root, "--vision-tower", published, "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "every tensor is equal, bit by bit" in done.stdout
    command = [sys.executable, TOOL, "--from", "megatron", "--to", "llava", "--load", root]
    done = subprocess.run([*command, "--save", back], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tower = {n: t for n, t in weights(back).items() if "vision_tower" in n}
    assert len(tower) == len(weights(published))
