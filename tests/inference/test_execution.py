"""What --vision-on-cpu, --torch-compile and --load-in-4bit make of a loaded checkpoint."""

import sys

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
    from megatron_llava.inference.load import inference_config, load_model

    how = Execution(**execution)
    config = inference_config(root, device="cpu", execution=how)
    return load_model(root, config, iteration=None, device=CPU, execution=how)


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


def test_a_model_without_learned_rows_has_its_blank_ones_beside_the_decoder():
    from megatron_llava.inference.load import place
    from megatron_llava.models.image_rows import special_rows

    for more in ({}, {"image_separator": True}):
        model = tiny_model(tiny_config(mm_patch_merge_type="flat", image_newline=False, **more))
        assert not hasattr(model, "image_newline")
        place(model, CPU, ELSEWHERE)
        assert special_rows(model, model.image_settings).device == CPU


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


def test_the_tower_is_what_is_compiled(root, questions, expected, monkeypatch):
    """As in training; what inductor makes of it takes a minute and is the test below."""
    from megatron_llava.inference import load

    made, calls = [], []

    def compiled(function):
        made.append(function)
        return lambda patches: calls.append(len(patches)) or function(patches)

    monkeypatch.setattr(load, "compiled", compiled)
    loaded(root)
    assert not made
    assert_same(answers(*loaded(root, torch_compile=True), questions), expected)
    assert [function.__name__ for function in made] == ["forward"] and len(calls) > 1


@pytest.mark.exhaustive  # minutes of compilation
def test_a_compiled_tower_gives_the_same_answers(root, questions, expected):
    model, settings = loaded(root, torch_compile=True)
    found = answers(model, settings, questions)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.allclose(one.prompt_logits, other.prompt_logits, atol=1e-4)


def test_a_compiler_is_asked_for_where_the_tower_computes(monkeypatch):
    monkeypatch.setattr("megatron_llava.platform.device.shutil.which", lambda name: None)
    Execution(vision_on_cpu=True).check("cpu")
    for execution in (
        Execution(torch_compile=True),
        Execution(torch_compile=True, vision_on_cpu=True),
    ):
        with pytest.raises(ValueError, match="--torch-compile needs a C.. compiler") as caught:
            execution.check("cuda" if execution.vision_on_cpu else "cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_4_bits_are_the_model_with_the_weights_of_bitsandbytes(
    root, questions, expected, quant_type, double_quant
):
    """Which are rounded by it and put into a plain model; but for those linears nothing is."""
    functional = pytest.importorskip("bitsandbytes").functional
    held, settings = loaded(
        root,
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
    )
    plain, _ = loaded(root)
    rounded = 0
    for name, parameter in plain.named_parameters():
        if name.startswith("language_model.decoder.layers.") and parameter.dim() == 2:
            packed, state = functional.quantize_4bit(
                parameter.data,
                blocksize=64,
                quant_type=quant_type,
                compress_statistics=double_quant,
            )
            parameter.data.copy_(functional.dequantize_4bit(packed, state))
            assert held.get_buffer(name).dtype == torch.uint8
            rounded += 1
    assert rounded == 4 * len(plain.language_model.decoder.layers)
    found = answers(held, settings, questions)
    assert_same(found, answers(plain, settings, questions))
    differences = [
        float((one.prompt_logits - other.prompt_logits).abs().max())
        for one, other in zip(found, expected, strict=True)
    ]
    assert min(differences) > 1e-3, "rounding is seen"


def test_all_of_it_together(root, questions):
    pytest.importorskip("bitsandbytes")
    alone = answers(*loaded(root, load_in_4bit=True), questions)
    both = answers(*loaded(root, load_in_4bit=True, vision_on_cpu=True), questions)
    assert_same(both, alone)


def test_4_bits_without_bitsandbytes_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    Execution().check("cpu")
    with pytest.raises(ValueError, match="--load-in-4bit: bitsandbytes is not insta") as caught:
        Execution(load_in_4bit=True).check("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"bnb_4bit_quant_type": "nf4"}, "--bnb-4bit-quant-type nf4"),
        ({"bnb_4bit_use_double_quant": True}, "--bnb-4bit-use-double-quant"),
    ],
)
def test_how_without_4_bits_is_refused(flags, said):
    with pytest.raises(ValueError, match=f"{said} is about --load-in-4bit, which is not given"):
        Execution(**flags).check("cpu")
