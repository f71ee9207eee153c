"""Towers for views of another size, against transformers' interpolated positions."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stage0_parts import language_model, vision_tower
from tiny_llava import MODEL_TYPES, tiny_llava

from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.resized_tower import POSITIONS, resized_positions
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.stage0 import Stage0, merge_to_hf, merge_to_megatron
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import LOGITS_THRESHOLD, verify_logits

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
CASES = [("llava_next", "clip-336"), ("llava_onevision", "siglip"), ("llava", "clip-224")]


@pytest.mark.proves("A17")
@pytest.mark.parametrize(("model_type", "tower"), CASES)
@pytest.mark.parametrize("size", [70, 31, 112])
def test_transformers_computes_the_same_at_the_new_size(
    core_process, tmp_path, model_type, tower, size
):
    from transformers import AutoModelForImageTextToText

    source = tiny_llava(tmp_path / "hf", model_type, "vicuna", tower)
    core_process(import_hf, source, tmp_path / "root", image_size=size)
    core_process(export_hf, tmp_path / "root", tmp_path / "back")
    core_process(verify, tmp_path / "root", tmp_path / "back")
    differences = core_process(verify_logits, tmp_path / "root", tmp_path / "back")
    assert max(differences.values()) <= LOGITS_THRESHOLD

    before, after = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name).model.vision_tower
        for name in ("hf", "back")
    )
    assert after.config.image_size == size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = before(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        found = after(pixels, output_hidden_states=True)
    for one, other in zip(expected.hidden_states, found.hidden_states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.proves("A17")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_its_own_size_changes_nothing(core_process, tmp_path, model_type):
    source = tiny_llava(tmp_path / "hf", model_type, "vicuna", "clip-336")
    core_process(import_hf, source, tmp_path / "root", image_size=56)
    core_process(verify, tmp_path / "root", source)
    core_process(import_hf, source, tmp_path / "plain")
    assert read_root_mapping(tmp_path / "root") == read_root_mapping(tmp_path / "plain")
    for path in (source).glob("*config.json"):
        copied = tmp_path / "root" / "hf" / path.name
        theirs = json.loads(path.read_text())
        assert json.loads(copied.read_text()) == theirs | (
            {"image_seq_length": 16} if path.name == "config.json" else {}
        )


def test_grids_keep_their_tiles(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "clip-336")
    old = json.loads((source / "config.json").read_text())["image_grid_pinpoints"]
    core_process(import_hf, source, tmp_path / "root", image_size=70)
    new = [[side // 56 * 70 for side in pair] for pair in old]
    assert read_root_mapping(tmp_path / "root")["image_grid_pinpoints"] == new
    core_process(export_hf, tmp_path / "root", tmp_path / "back")
    processor = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert processor["image_grid_pinpoints"] == new
    assert processor["size"] == {"shortest_edge": 70}
    assert processor["crop_size"] == {"height": 70, "width": 70}


def test_a_start_for_another_size(core_process, tmp_path):
    settings = Stage0(
        language_model=language_model(tmp_path / "llm", "qwen2"),
        vision_tower=vision_tower(tmp_path / "tower", "siglip", with_text=True),
        model_type="llava_onevision",
        vision_image_size=98,
    )
    core_process(merge_to_hf, settings, tmp_path / "hf")
    core_process(merge_to_megatron, settings, tmp_path / "root")
    core_process(verify, tmp_path / "root", tmp_path / "hf")
    differences = core_process(verify_logits, tmp_path / "root", tmp_path / "hf")
    assert max(differences.values()) <= LOGITS_THRESHOLD
    mapping = read_root_mapping(tmp_path / "root")
    assert mapping["vision_image_size"] == 98
    assert mapping["image_grid_pinpoints"][:2] == [[98, 98], [196, 98]]
    table = HFReader(tmp_path / "hf").tensor(POSITIONS)
    assert len(table) == 49


def test_a_view_without_a_patch(core_process, tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "clip-336")
    with pytest.raises(ValueError, match="--vision-image-size 13: a patch of the tower has 14 pix"):
        core_process(import_hf, source, tmp_path / "root", image_size=13)
    assert not (tmp_path / "root").exists()


def test_the_tool_compares_and_says_what_it_cannot(tmp_path):
    source = tiny_llava(tmp_path / "hf", "llava_next", "vicuna", "clip-336")
    command = [sys.executable, TOOL, "--from", "hf", "--to", "megatron", "--load", source]
    command += ["--save", tmp_path / "root", "--vision-image-size", "84", "--verify"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "every tensor is equal, bit by bit" in done.stdout
    assert "transformers reads the folder for views of another size" in done.stdout
    command[3], command[5] = "megatron", "hf"
    refused = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert "--vision-image-size belongs to --from hf" in refused.stderr


@given(
    old=st.integers(1, 9),
    side=st.integers(1, 12),
    front=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_constant_positions_stay_so_and_the_class_row_is_kept(old, side, front, dtype):
    rows = old**2 + front
    table = torch.full((rows, 5), 0.5, dtype=dtype)
    if front and old > 0:
        table[0] = -3.0
    resized = resized_positions(table, side)
    assert resized.shape == (side**2 + front, 5) and resized.dtype == dtype
    assert math.isqrt(rows) == old
    assert torch.allclose(resized[int(front) :], torch.tensor(0.5, dtype=dtype))
    if front:
        assert torch.equal(resized[0], table[0])
