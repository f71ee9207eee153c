import json

import pytest
import torch
from hf_layouts import LAYOUTS, rewrite
from safetensors.torch import load_file, save_file
from tiny_checkpoints import tiny_llava_next

from megatron_llava.convert.convert import (
    HFTensors,
    common_dtype,
    hf_state_from_megatron,
    megatron_shapes,
    megatron_state_from_hf,
)
from megatron_llava.convert.hf_folder import copy_side_files, read_mapping, write_config
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.hf_writer import write_hf
from megatron_llava.convert.journal import Journal
from megatron_llava.convert.tensor_source import InMemory

MODELS = [("llama", "clip", False), ("qwen2", "siglip", True), ("mistral", "clip", False)]
QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: "-".join(map(str, model)))
def folder(request, tmp_path_factory):
    text, vision, tied = request.param
    return tiny_llava_next(tmp_path_factory.mktemp("hf"), text, vision, tied=tied)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llava_next(tmp_path_factory.mktemp("hf") / "llama", "llama", "clip")


def to_megatron(folder):
    reader = HFReader(folder)
    mapping = read_mapping(folder, reader)
    return reader, mapping, *megatron_state_from_hf(reader, mapping)


@pytest.mark.proves("B13", "D20")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_bitwise(folder, tmp_path, layout):
    source = rewrite(folder, tmp_path / layout, layout)
    reader, mapping, state, passthrough = to_megatron(source)
    assert reader.layout == layout
    assert {name: tuple(t.shape) for name, t in state.items()} == megatron_shapes(mapping)
    back = dict(hf_state_from_megatron(state, mapping, passthrough))
    assert sorted(back) == reader.names()
    for name, tensor in back.items():
        assert torch.equal(tensor, reader.tensor(name)), name


def test_the_exported_folder_loads_in_transformers(folder, tmp_path):
    from transformers import LlavaNextForConditionalGeneration

    _, mapping, state, passthrough = to_megatron(folder)
    source = HFTensors(InMemory(state), mapping, passthrough)
    for name in source.names():
        assert name.startswith("vision_tower.vision_model.") or "vision_tower" not in name
    write_hf(tmp_path, source, Journal(tmp_path, {}), max_shard_bytes=100_000)
    copy_side_files(folder, tmp_path)
    model, report = LlavaNextForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    expected = LlavaNextForConditionalGeneration.from_pretrained(folder).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_names_and_grouping_of_the_megatron_side(llama):
    reader, _, state, passthrough = to_megatron(llama)
    hidden, groups, heads, channels = 64, 2, 2, 16
    prefix = "language_model.model.layers.3.self_attn."
    query, key, value = (reader.tensor(f"{prefix}{name}_proj.weight") for name in "qkv")
    expected = torch.cat(
        [
            query.view(groups, heads * channels, hidden),
            key.view(groups, channels, hidden),
            value.view(groups, channels, hidden),
        ],
        dim=1,
    ).reshape(-1, hidden)
    layer = "language_model.decoder.layers.3."
    assert torch.equal(state[layer + "self_attention.linear_qkv.weight"], expected)
    fc1 = state[layer + "mlp.linear_fc1.weight"]
    mlp = "language_model.model.layers.3.mlp."
    assert torch.equal(fc1[:112], reader.tensor(mlp + "gate_proj.weight"))
    assert torch.equal(fc1[112:], reader.tensor(mlp + "up_proj.weight"))
    assert state["vision_model.class_token"].shape == (1, 1, 48)
    assert "vision_model.decoder.layers.1.mlp.linear_fc2.bias" in state
    assert "vision_model.decoder.layers.2.mlp.linear_fc2.bias" not in state
    assert len(passthrough) == 16 + 2  # the third CLIP layer and post_layernorm


def test_query_key_value_bias_only_for_qwen2(folder):
    _, mapping, state, _ = to_megatron(folder)
    bias = "language_model.decoder.layers.0.self_attention.linear_qkv.bias"
    assert (bias in state) == (mapping["language_model_type"] == "qwen2") == mapping["add_qkv_bias"]
    output = "language_model.output_layer.weight"
    assert (output in state) == mapping["untie_embeddings_and_output_weights"]


def edited(source, target, change):
    rewrite(source, target, "hub")
    path = target / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)
    return target


def refused(folder, *words):
    with pytest.raises(ValueError) as caught:
        to_megatron(folder)
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_surplus_and_misshapen_tensors_are_listed(llama, tmp_path):
    text = refused(
        edited(llama, tmp_path / "missing", lambda t: t.pop(QUERY)),
        f"missing {QUERY}",
        "(64, 64)",
    )
    assert text.count(": expected") == 1
    extra = "language_model.model.layers.1.self_attn.q_proj.bias"
    refused(
        edited(llama, tmp_path / "surplus", lambda t: t.update({extra: torch.zeros(64)})),
        f"surplus {extra}",
        "(64,)",
    )
    refused(
        edited(llama, tmp_path / "shape", lambda t: t.update({QUERY: torch.zeros(64, 63)})),
        f"misshapen {QUERY}",
        "(64, 64)",
        "(64, 63)",
    )

    def drop_many(tensors):
        for name in [name for name in tensors if ".mlp.fc1" in name or ".q_proj.weight" in name]:
            if name != "language_model.model.layers.0.self_attn.q_proj.weight":
                del tensors[name]

    text = refused(edited(llama, tmp_path / "many", drop_many), "12 tensors", "first 10")
    assert text.count(": expected") == 10


def test_buffers_are_passed_through(llama, tmp_path):
    positions = "vision_tower.vision_model.embeddings.position_ids"
    source = edited(llama, tmp_path / "hf", lambda t: t.update({positions: torch.arange(17)}))
    _, mapping, state, passthrough = to_megatron(source)
    back = dict(hf_state_from_megatron(state, mapping, passthrough))
    assert torch.equal(back[positions], torch.arange(17))


def with_config(source, target, change):
    rewrite(source, target, "hub")
    path = target / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "vocab_size", 301),
        ("text_config", "num_attention_heads", 8),
        ("text_config", "num_key_value_heads", 4),
        ("text_config", "num_hidden_layers", 5),
        ("vision_config", "num_hidden_layers", 4),
        (None, "tie_word_embeddings", True),
        ("text_config", "tie_word_embeddings", True),
    ],
)
def test_a_config_that_contradicts_the_tensors(llama, tmp_path, section, key, value):
    def change(config):
        (config[section] if section else config)[key] = value

    source = with_config(llama, tmp_path / "hf", change)
    refused(source, key, str(source))


def test_an_image_size_that_contradicts_the_positions(llama, tmp_path):
    source = with_config(llama, tmp_path / "hf", lambda c: c["vision_config"].update(patch_size=28))
    refused(source, "vision_config.image_size", "17 rows")


def test_untied_without_an_output_weight(llama, tmp_path):
    name = "language_model.lm_head.weight"
    refused(edited(llama, tmp_path / "hf", lambda t: t.pop(name)), "tie_word_embeddings", name)


def test_a_tied_weight_stored_twice_comes_back_twice(tmp_path):
    source = tiny_llava_next(tmp_path / "tied", "qwen2", "siglip", tied=True)
    embedding = "language_model.model.embed_tokens.weight"
    output = "language_model.lm_head.weight"
    both = edited(source, tmp_path / "both", lambda t: t.update({output: t[embedding].clone()}))
    reader, mapping, state, passthrough = to_megatron(both)
    assert "language_model.output_layer.weight" not in state
    # A trained embedding must show up under both names, not the imported bytes.
    state["language_model.embedding.word_embeddings.weight"] += 1.0
    back = dict(hf_state_from_megatron(state, mapping, passthrough))
    assert sorted(back) == reader.names()
    assert torch.equal(back[output], back[embedding])
    assert not torch.equal(back[output], reader.tensor(output))


def test_one_dtype_for_all_parameters(llama, tmp_path):
    reader, mapping, *_ = to_megatron(llama)
    assert common_dtype(reader, mapping) == torch.float32
    mixed = edited(llama, tmp_path / "mixed", lambda t: t.update({QUERY: t[QUERY].bfloat16()}))
    with pytest.raises(ValueError, match="two dtypes.*q_proj.*: give --dtype"):
        common_dtype(HFReader(mixed), mapping)
    double = edited(llama, tmp_path / "double", lambda t: t.update({QUERY: t[QUERY].double()}))
    with pytest.raises(ValueError, match="q_proj.weight is torch.float64"):
        common_dtype(HFReader(double), mapping)


def test_an_incomplete_megatron_state_is_refused_before_the_first_tensor(llama):
    _, mapping, state, passthrough = to_megatron(llama)
    newline = state.pop("image_newline")
    with pytest.raises(ValueError, match="missing image_newline"):
        hf_state_from_megatron(state, mapping, passthrough)
    state["image_newline"] = newline[:-1]
    with pytest.raises(ValueError, match=r"misshapen image_newline.*\(64,\).*\(63,\)"):
        hf_state_from_megatron(state, mapping, passthrough)
    state["image_newline"] = newline
    with pytest.raises(ValueError, match=r"18 tensors do not fit.*missing vision_tower"):
        hf_state_from_megatron(state, mapping, {})


def test_config_is_written_with_the_dtype_of_the_tensors(llama, tmp_path):
    config = json.loads((llama / "config.json").read_text())
    write_config(tmp_path, config, torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text()) == config | {"dtype": "bfloat16"}


def test_the_head_of_a_siglip_tower_is_passed_through(tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=48, intermediate_size=80, num_attention_heads=4, num_hidden_layers=1
    )
    head = {
        "vision_tower.vision_model." + name.removeprefix("vision_model."): tensor
        for name, tensor in SiglipVisionModel(config).state_dict().items()
        if "head." in name
    }
    assert len(head) == 11
    source = tiny_llava_next(tmp_path / "hf", "qwen2", "siglip", tied=True)
    with_head = edited(source, tmp_path / "head", lambda tensors: tensors.update(head))
    _, mapping, state, passthrough = to_megatron(with_head)
    back = dict(hf_state_from_megatron(state, mapping, passthrough))
    assert all(torch.equal(back[name], tensor) for name, tensor in head.items())
