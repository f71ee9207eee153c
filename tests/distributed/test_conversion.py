"""Converted checkpoints over layouts: the logits of transformers, and back bitwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_jobs import (
    export_and_compare_logits,
    export_and_verify,
    import_and_judge,
    logits_and_resave,
)
from distributed_jobs import train
from safetensors.torch import load_file
from tiny_llava import MODEL_TYPES, TEXT_FAMILIES, TOWERS, tiny_llava

# Every class and tower with every text family in test_classes.py; here each of them somewhere.
MODELS = {
    "vicuna": ("llava", "clip-336"),
    "llama3": ("llava_next", "siglip"),
    "mistral": ("llava_next", "clip-224"),
    "yi": ("llava_next", "clip-336"),
    "qwen1.5": ("llava", "siglip"),
    "qwen2": ("llava_onevision", "siglip"),
    "qwen2-tied": ("llava_onevision", "clip-336"),
}
# (tensor, pipeline); one rank is in test_classes.py.
LAYOUTS = {
    "vicuna": [(1, 2), (4, 1)],
    "llama3": [(2, 1), (4, 2)],
    "mistral": [(4, 1), (2, 2)],
    "yi": [(2, 1), (4, 2)],
    "qwen1.5": [(1, 2), (4, 1)],
    "qwen2": [(2, 2), (4, 1)],
    "qwen2-tied": [(2, 1), (2, 2)],  # its 14 heads are not divided by four
}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A converted folder and what transformers says of it."""

    source: Path
    root: Path
    asked: dict[str, Any]
    logits: dict[str, torch.Tensor]


def judge(pool, folder: Path, model_type: str, text: str, tower: str) -> Judged:
    """Make a folder, convert it, and ask transformers."""
    source, root = tiny_llava(folder / "hf", model_type, text, tower), folder / "root"
    (asked, logits), *_ = pool.run(import_and_judge, source, root)
    return Judged(source=source, root=root, asked=asked, logits=logits)


def check_layout(pool, model: Judged, folder: Path, tensor_parallel: int, pipeline: int) -> None:
    """The logits of transformers over a layout, and back from there bitwise."""
    saved, exported = folder / "saved", folder / "exported"
    layout = {"tensor_parallel": tensor_parallel, "pipeline": pipeline}
    ranks = tensor_parallel * pipeline
    given = (model.root, saved, model.asked)
    found = pool.run(logits_and_resave, *given, world_size=ranks, **layout)[-1]
    assert found.keys() == model.logits.keys()
    for name, logits in found.items():
        assert (logits - model.logits[name]).abs().max() <= 1e-4, name
    pool.run(export_and_verify, saved, exported)
    before = load_file(model.source / "model.safetensors")
    after = load_file(exported / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after.pop(hub_name(name)), tensor), name
    assert not after


@pytest.fixture(scope="module")
def judged(pool, tmp_path_factory):
    made: dict[str, Judged] = {}

    def make(text: str) -> Judged:
        if text not in made:
            folder = tmp_path_factory.mktemp("conversion")
            model_type, tower = MODELS[text]
            made[text] = judge(pool, folder, model_type, text, tower)
        return made[text]

    return make


@pytest.mark.proves("B13")
@pytest.mark.parametrize(
    ("text", "tensor_parallel", "pipeline"),
    [(text, *layout) for text, layouts in LAYOUTS.items() for layout in layouts],
)
def test_logits_at_a_layout_and_back(pool, judged, tmp_path, text, tensor_parallel, pipeline):
    check_layout(pool, judged(text), tmp_path, tensor_parallel, pipeline)


@pytest.mark.grid
@pytest.mark.exhaustive
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", TEXT_FAMILIES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_at_every_layout(pool, tmp_path, model_type, text, tower):
    model = judge(pool, tmp_path, model_type, text, tower)
    heads = TEXT_FAMILIES[text][1]
    for tensor_parallel, pipeline in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2)):
        if heads % tensor_parallel == 0:
            folder = tmp_path / f"tp{tensor_parallel}-pp{pipeline}"
            check_layout(pool, model, folder, tensor_parallel, pipeline)


TRAINED = {
    "tp2-pp2-vpp2-distopt": (
        4,
        "plain",
        [
            "--tensor-model-parallel-size=2",
            "--pipeline-model-parallel-size=2",
            "--num-layers-per-virtual-pipeline-stage=1",
            "--use-distributed-optimizer",
        ],
    ),
    "pp2-tied-without-optimizer": (
        2,
        "tied",
        ["--pipeline-model-parallel-size=2", "--no-save-optim"],
    ),
    "cp2-distopt-reshardable": (
        2,
        "plain",
        [
            "--context-parallel-size=2",
            "--use-distributed-optimizer",
            "--dist-ckpt-optim-fully-reshardable",
            "--mm-tunable-parts=mm_mlp_adapter,mm_language_model",
        ],
    ),
}
# What LLaVA does not read of the tower: of CLIP the hidden state before the last is selected.
UNREAD = {"plain": ("encoder.layers.2.", "post_layernorm."), "tied": ("post_layernorm.",)}


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_checkpoint_is_exported(pool, setup, tmp_path, name):
    """Trained weights of any layout, with optimizer state beside them, in transformers."""
    world_size, model, flags = TRAINED[name]
    arguments = setup.arguments(
        *flags, f"--save={tmp_path}/saved", "--save-interval=3", model=model, steps=3
    )
    pool.run(train, arguments, world_size=world_size)
    difference = pool.run(
        export_and_compare_logits, tmp_path / "saved", tmp_path / "hf", timeout=120
    )[0]
    assert difference <= 1e-4
    before = load_file(setup.folder / f"{model}-hf" / "model.safetensors")
    after = load_file(tmp_path / "hf" / "model.safetensors")
    embedding = "language_model.model.embed_tokens.weight"
    assert not torch.equal(after[embedding], before[embedding]), "it has learned"
    frozen = any("--mm-tunable-parts" in flag for flag in flags)
    tower = {hub_name(name): tensor for name, tensor in before.items() if "vision_tower" in name}
    kept = {name for name, tensor in tower.items() if torch.equal(after[name], tensor)}
    unread = {name for name in tower if any(part in name for part in UNREAD[model])}
    assert len(unread) == {"plain": 18, "tied": 2}[model]
    assert kept == (set(tower) if frozen else unread)


def hub_name(name: str) -> str:
    """A name of the folder as it is written again: in the hub's layout."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
