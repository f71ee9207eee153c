"""Exported folders of every class answer as our own `generate` does, greedily, in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_llava import MODEL_TYPES, tiny_llava

NEW_TOKENS = 12


def answers_of_both(folder: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Token ids of the answers by question: ours, and those of transformers."""
    from megatron_llava.convert.checkpoint import export_hf, import_hf, load_state
    from megatron_llava.convert.hf_model import HFModel
    from megatron_llava.convert.places import build_for_compute
    from megatron_llava.convert.root_files import read_root_mapping, run_config
    from megatron_llava.convert.single_process import single_process
    from megatron_llava.convert.verify_batch import sample_of
    from megatron_llava.convert.verify_logits import cases, expanded_ids
    from megatron_llava.inference.generate import generate
    from megatron_llava.vision.settings import image_settings

    import_hf(folder / "hf", folder / "root")
    export_hf(folder / "root", folder / "exported")
    mapping = read_root_mapping(folder / "root")
    settings = image_settings(run_config(mapping, "model.yaml"))
    asked = cases(mapping, settings)
    with single_process(), torch.no_grad():
        model = build_for_compute(mapping, torch.float32)
        model.load_state_dict(load_state(folder / "root", mapping))
        prompts = [sample_of(ids, images) for ids, images in asked.values()]
        options = {"max_new_tokens": NEW_TOKENS, "stop_token_ids": (), "rows_per_pack": 600}
        ours = [list(answer.token_ids) for answer in generate(model, prompts, settings, **options)]
    hf = HFModel(folder / "exported", mapping["hf_model_type"])
    theirs = []
    for ids, images in asked.values():
        prompt = expanded_ids(ids, images, mapping["image_token_index"], settings)
        output = hf.model.generate(
            input_ids=torch.tensor([prompt]),
            # Some of the ids are those that pad: without a mask they would be left out.
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            **hf.pixels(images),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
        )
        theirs.append(output[0, len(prompt) :].tolist())
    return dict(zip(asked, zip(ours, theirs, strict=True), strict=True))


@pytest.mark.parametrize(
    ("model_type", "text", "tower"),
    [
        ("llava", "vicuna", "clip-336"),
        ("llava_next", "llama3", "clip-336"),
        ("llava_onevision", "qwen2-tied", "siglip"),
    ],
)
def test_the_same_tokens(single_rank, tmp_path, model_type, text, tower):
    assert model_type in MODEL_TYPES
    tiny_llava(tmp_path / "hf", model_type, text, tower)
    answers = answers_of_both(tmp_path)
    assert len(answers) == 5
    for name, (ours, theirs) in answers.items():
        assert len(ours) == NEW_TOKENS and ours == theirs, name
