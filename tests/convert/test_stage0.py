"""Stage 0: a language model and a tower become a LLaVA checkpoint of any class."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage0_parts import language_model, vision_tower
from tiny_llava import MODEL_TYPES

from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.stage0 import Stage0, merge_to_hf, merge_to_megatron
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import LOGITS_THRESHOLD, verify_logits

TOOL = Path(__file__).parents[2] / "tools" / "merge_checkpoint.py"


@pytest.mark.parametrize(("text", "tower"), [("vicuna", "clip-336"), ("qwen2-tied", "siglip")])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_starting_checkpoint(core_process, tmp_path, model_type, text, tower):
    with_text = (model_type == "llava_next") == (tower == "siglip")
    settings = Stage0(
        language_model=language_model(tmp_path / "llm", text),
        vision_tower=vision_tower(tmp_path / "tower", tower, with_text),
        model_type=model_type,
        conversation_template="vicuna_v1" if text == "vicuna" else "qwen_2",
    )
    folder, root = tmp_path / "hf", tmp_path / "root"
    core_process(merge_to_hf, settings, folder)
    core_process(merge_to_megatron, settings, root)
    core_process(verify, root, folder)
    differences = core_process(verify_logits, root, folder)
    assert max(differences.values()) <= LOGITS_THRESHOLD
    mapping = read_root_mapping(root)
    assert (mapping["vocab_size"], mapping["image_token_index"]) == (320, 290)
    assert (folder / "chat_template.jinja").exists()
    # The language model's own tensors, and new rows that are the mean of the others.
    reader, before = HFReader(folder), load_file(tmp_path / "llm" / "model.safetensors")
    embedding = reader.tensor("language_model.model.embed_tokens.weight")
    old = before.pop("model.embed_tokens.weight")
    assert torch.equal(embedding[:290], old)
    assert torch.allclose(embedding[290:], old.mean(0).expand(30, -1))
    before.pop("lm_head.weight", None)
    for name, tensor in before.items():
        assert torch.equal(reader.tensor("language_model." + name), tensor), name


def test_it_is_a_folder_like_any_other(core_process, tmp_path):
    from transformers import AutoTokenizer

    settings = Stage0(
        language_model=language_model(tmp_path / "llm", "mistral"),
        vision_tower=vision_tower(tmp_path / "tower", "clip-336"),
        grids=((1, 2), (2, 2)),
    )
    core_process(merge_to_hf, settings, tmp_path / "hf")
    core_process(import_hf, tmp_path / "hf", tmp_path / "root")
    core_process(export_hf, tmp_path / "root", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["image_grid_pinpoints"] == [[112, 56], [112, 112]]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.encode("a <image> b", add_special_tokens=False).count(290) == 1
    projector = load_file(tmp_path / "back" / "model.safetensors")
    weight = projector["multi_modal_projector.linear_1.weight"]
    bound = weight.shape[1] ** -0.5
    assert weight.abs().max() <= bound and weight.std() > bound / 2


def test_the_same_seed_draws_the_same(core_process, tmp_path):
    parts = {
        "language_model": language_model(tmp_path / "llm", "vicuna"),
        "vision_tower": vision_tower(tmp_path / "tower", "clip-336"),
    }
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / f"hf{number}"
        core_process(merge_to_hf, Stage0(**parts, seed=seed), folder)
        drawn.append(load_file(folder / "model.safetensors")["image_newline"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_projector_that_transformers_lacks(core_process, tmp_path):
    settings = Stage0(
        language_model=language_model(tmp_path / "llm", "qwen2"),
        vision_tower=vision_tower(tmp_path / "tower", "siglip"),
        projector="mlp2x_res1x_gelu",
    )
    with pytest.raises(ValueError, match="--projector mlp2x_res1x_gelu: the classes of transf"):
        core_process(merge_to_hf, settings, tmp_path / "hf")
    core_process(merge_to_megatron, settings, tmp_path / "root")
    assert read_root_mapping(tmp_path / "root")["mm_projector_type"] == "mlp2x_res1x_gelu"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llm", "root", "tower"]


def test_parts_that_do_not_fit(core_process, tmp_path):
    llm = language_model(tmp_path / "llm", "vicuna", dtype=torch.bfloat16)
    tower = vision_tower(tmp_path / "tower", "clip-336")

    def refused(match, **changes):
        settings = Stage0(**{"language_model": llm, "vision_tower": tower, **changes})
        with pytest.raises(ValueError, match=match) as caught:
            core_process(merge_to_megatron, settings, tmp_path / "root")
        assert "\n" not in str(caught.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["llm", "tower"]

    refused("two dtypes in one checkpoint")
    refused("no Llama, Mistral or Qwen2 language model", language_model=tower)
    refused("no CLIP or SigLIP vision model", vision_tower=llm)
    refused("--mm-projector-type pooler: expected linear", projector="pooler")
    refused("no_such", conversation_template="no_such")
    core_process(
        merge_to_megatron,
        Stage0(language_model=llm, vision_tower=tower),
        tmp_path / "root",
        torch.bfloat16,
    )


def test_the_command_line(tmp_path):
    llm = language_model(tmp_path / "llm", "llama3")
    tower = vision_tower(tmp_path / "tower", "siglip")
    command = [sys.executable, TOOL, "--language-model", llm, "--vision-tower", tower]
    command += ["--model-type", "llava_onevision", "--to", "hf", "--save", tmp_path / "hf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {tmp_path / 'hf'}"
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("merge_checkpoint.py: error: ")
    assert "already exists" in again.stderr
    save_file({"x": torch.zeros(1)}, tower / "model.safetensors")
    command[-1] = tmp_path / "other"
    broken = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert broken.returncode == 2 and "Traceback" not in broken.stderr
