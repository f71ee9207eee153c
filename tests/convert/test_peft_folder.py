"""Adapter folders of `peft`: what it trained computes the same here, and comes back bitwise."""

import json

import pytest
from adapter_jobs import imported, make_peft_folder, same_from_original
from tiny_llava import tiny_llava

from megatron_llava.convert.checkpoint import import_hf
from megatron_llava.convert.peft_folder import import_peft
from megatron_llava.convert.peft_names import hub_name_of_peft, target_pattern

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODELS = {
    "llava_next-llama3-siglip": {"target_modules": target_pattern(ALL)},
    "llava_onevision-qwen2-tied-clip-336": {
        "target_modules": target_pattern(ALL),
        "modules_to_save": ["multi_modal_projector"],
    },
    "llava-vicuna-clip-336": {"target_modules": target_pattern(("q_proj", "v_proj", "up_proj"))},
}


@pytest.mark.proves("D6")
@pytest.mark.parametrize("name", MODELS)
def test_adapters_that_peft_trained_compute_the_same_here(core_process, tmp_path, name):
    model_type, _, rest = name.partition("-")
    text = "qwen2-tied" if "tied" in rest else rest.split("-")[0]
    hf = tiny_llava(tmp_path / "hf", model_type, text, rest.removeprefix(f"{text}-"))
    differences = core_process(imported, tmp_path, hf, **MODELS[name])
    assert differences.pop("without adapters") > 1e-2
    assert differences.pop("exported again") == 0
    assert differences.pop("merged") <= 1e-5
    assert differences.pop("unmerged") <= 1e-4
    assert not differences


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.language_model.layers.3.mlp.up_proj.lora_A.weight", "layers.3.mlp.up_proj"),
        ("language_model.model.layers.3.mlp.up_proj.lora_A.weight", "layers.3.mlp.up_proj"),
        ("model.layers.3.mlp.up_proj.lora_A.weight", "layers.3.mlp.up_proj"),
    ],
)
def test_names_of_every_version_are_read(name, expected):
    hub = f"language_model.model.{expected}.lora_A.weight"
    assert hub_name_of_peft(f"base_model.model.{name}") == hub


@pytest.fixture(scope="module")
def folders(core_process, tmp_path_factory):
    """A converted model and an adapter folder for it, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("peft")
    hf = tiny_llava(folder / "hf", "llava_next", "llama3", "clip-336")
    core_process(import_hf, hf, folder / "base")
    core_process(make_peft_folder, hf, folder / "peft", target_modules=target_pattern(ALL))
    core_process(make_peft_folder, hf, folder / "leaked", target_modules=["q_proj", "v_proj"])
    return folder


CHANGES = [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"use_dora": True}, "use_dora is True"),
    ({"use_rslora": True}, "use_rslora is True"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"r": 8}, "expected shape (8, "),
    ({"r": "4"}, "r is '4'"),
]


@pytest.mark.parametrize(("changes", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_adapters_that_are_not_computed_here_are_refused(
    core_process, folders, tmp_path, changes, said
):
    spoilt = tmp_path / "peft"
    spoilt.mkdir()
    for path in (folders / "peft").iterdir():
        (spoilt / path.name).write_bytes(path.read_bytes())
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError) as caught:
        core_process(import_peft, spoilt, folders / "base", tmp_path / "root")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [spoilt]


def test_adapters_of_the_original_code_are_read(core_process, tmp_path):
    hf = tiny_llava(tmp_path / "hf", "llava_next", "llama3", "clip-336")
    with pytest.raises(ValueError, match="vision_tower.x is neither the projector's nor the new"):
        core_process(same_from_original, tmp_path, hf)


def test_adapters_of_the_tower_are_refused(core_process, folders, tmp_path):
    with pytest.raises(ValueError, match="vision_tower.*neither of the language model's layers"):
        core_process(import_peft, folders / "leaked", folders / "base", tmp_path / "root")
