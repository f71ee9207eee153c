"""What --vision-on-cpu makes of a loaded checkpoint."""

import pytest
import torch
from tiny_model import tiny_config, tiny_model

from megatron_llava.inference.execution import Execution

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
pytestmark = [pytest.mark.usefixtures("single_rank"), pytest.mark.proves("E3")]


@pytest.fixture(scope="module")
def root(pair, tmp_path_factory):
    from megatron_llava.convert.checkpoint import import_hf

    folder = tmp_path_factory.mktemp("execution") / "root"
    import_hf(pair.folder, folder)
    return str(folder)


def loaded(root, **execution):
    from megatron_llava.inference.load import load_model

    return load_model(root, iteration=None, device=CPU, execution=Execution(**execution))


def answers(model, settings, questions):
    from megatron_llava.inference.generate import generate

    prompts = [question.prompt for question in questions]
    options = {"max_new_tokens": 4, "stop_token_ids": (), "rows_per_pack": 250}
    return list(generate(model, prompts, settings, **options))


@pytest.fixture(scope="module")
def expected(root, questions):
    found = answers(*loaded(root), questions)
    assert len({answer.token_ids for answer in found}) == len(questions)
    return found


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.prompt_logits, other.prompt_logits)


def test_on_one_device_it_is_the_same_where_the_tower_is(root, questions, expected):
    assert_same(answers(*loaded(root, vision_on_cpu=True), questions), expected)


def test_all_between_pixels_and_the_decoder_is_put_elsewhere():
    from megatron_llava.inference.load import place

    more = {"cross_image_attention": True, "temporal_encoder_layers": 1}
    model = tiny_model(tiny_config(**more, image_separator=True))
    place(model, CPU, ELSEWHERE)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    there = {name.split(".")[0] for name, tensor in tensors.items() if tensor.device == ELSEWHERE}
    here = {name.split(".")[0] for name, tensor in tensors.items() if tensor.device == CPU}
    moved = {"vision_model", "vision_projection", "cross_image_attention", "temporal_encoder"}
    assert there == {*moved, "pixel_table"}
    assert {"language_model", "image_newline"} <= here and not here & there


def test_pixels_go_to_the_tower_and_features_to_the_decoder(root, questions, expected, monkeypatch):
    """On two devices, of which one computes nothing: features are those of a whole model."""
    from megatron_llava.inference.load import place

    (model, settings), (split, _) = loaded(root), loaded(root)
    features, encode = [], model.visual_features
    monkeypatch.setattr(
        model, "visual_features", lambda batch: features.append(encode(batch)) or features[-1]
    )
    answers(model, settings, questions)
    place(split, CPU, ELSEWHERE)
    replayed = iter(features)

    def replay(batch):
        assert batch.tiles.device == ELSEWHERE
        return next(replayed)

    monkeypatch.setattr(split, "visual_features", replay)
    assert_same(answers(split, settings, questions), expected)
    assert next(replayed, None) is None and len(features) > 1
