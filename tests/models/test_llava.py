import pytest
import torch
from tiny_model import (
    TOLERANCE,
    VOCAB_SIZE,
    assert_bitwise,
    assert_equal_runs,
    losses_and_gradients,
    mixed_samples,
    pack,
    relative_difference,
    sum_of_samples,
    tiny_config,
    tiny_model,
    tiny_sample,
    with_video,
)

from megatron_llava.config.training import part_of
from megatron_llava.models.build import build_llava_model
from megatron_llava.training.freeze import freeze_parts
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.tile_positions import view_positions

pytestmark = pytest.mark.usefixtures("single_rank")

KINDS = {
    "qwen2-clip": {},
    "llama-siglip-tied": {
        "add_qkv_bias": False,
        "untie_embeddings_and_output_weights": False,
        "vision_model_type": "siglip",
        "vision_hidden_act": "gelu_pytorch_tanh",
    },
}
PARTS = ("mm_mlp_adapter", "mm_vision_tower", "mm_language_model")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.mark.proves("B11")
def test_a_pack_is_its_samples_alone(kind):
    config, samples = tiny_config(**kind), mixed_samples()
    model = tiny_model(config)
    batch = pack(config, samples)
    assert (batch.weights[:, 1] != 0).any() and batch.num_images == 6 and batch.num_samples == 6
    found = losses_and_gradients(model, batch)
    assert_equal_runs(found, sum_of_samples(model, config, samples))


@pytest.mark.proves("B11")
def test_eight_images_in_a_sample_beside_samples_of_others():
    config = tiny_config()
    sizes = [(30 + 10 * number, 70 - 5 * number) for number in range(8)]
    samples = [tiny_sample(sizes[:count], 9, count) for count in (3, 0, 8, 1)]
    model = tiny_model(config)
    batch = pack(config, samples)
    assert batch.num_images == 12
    found = losses_and_gradients(model, batch)
    assert_equal_runs(found, sum_of_samples(model, config, samples))


def test_the_order_of_samples_does_not_matter():
    config, samples = tiny_config(), mixed_samples()
    model = tiny_model(config)
    _, forwards = losses_and_gradients(model, pack(config, samples))
    _, backwards = losses_and_gradients(model, pack(config, samples[::-1]))
    for name, gradient in forwards.items():
        assert relative_difference(backwards[name], gradient) < TOLERANCE, name


@pytest.mark.parametrize("padding", [{"pad_multiple": 64}, {"pad_to": 512}])
def test_padding_rows_change_nothing(padding):
    config, samples = tiny_config(), mixed_samples()
    model = tiny_model(config)
    batch = pack(config, samples, **padding)
    assert batch.taps.shape[0] > batch.num_rows
    expected = losses_and_gradients(model, pack(config, samples))
    assert_equal_runs(losses_and_gradients(model, batch), expected)


def test_without_an_image_tower_and_projector_have_zero_gradients():
    config = tiny_config()
    model = tiny_model(config)
    batch = pack(config, [tiny_sample([], 12, 1), tiny_sample([], 5, 2)])
    assert batch.num_views == 0 and len(batch.tiles) == 1
    losses, gradients = losses_and_gradients(model, batch)
    assert losses.all()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        seen = part_of(name) == "mm_language_model" and name != "image_newline"
        assert bool(gradient.any()) == seen, name


@pytest.mark.parametrize("samples", [[], [tiny_sample([(30, 60)], 6, 1)]], ids=["empty", "image"])
def test_without_labels_the_loss_and_every_gradient_are_zero(samples):
    config = tiny_config()
    model = tiny_model(config)
    for sample in samples:
        sample.label_mask[:] = 0
    losses, gradients = losses_and_gradients(model, pack(config, samples, pad_multiple=8))
    assert losses.tolist() == [0.0]
    for name, gradient in gradients.items():
        assert gradient is not None and not gradient.any(), name


def test_columns_that_pad_the_vocabulary_never_matter(kind):
    samples = mixed_samples()
    plain = tiny_config(**kind, make_vocab_size_divisible_by=1)
    padded = tiny_config(**kind, make_vocab_size_divisible_by=128)
    expected = losses_and_gradients(tiny_model(plain), pack(plain, samples))
    model = tiny_model(padded)
    embedding = model.language_model.embedding.word_embeddings.weight
    assert embedding.shape[0] == 256 and embedding[VOCAB_SIZE:].any()
    losses, gradients = losses_and_gradients(model, pack(padded, samples))
    for name in gradients:
        if "word_embeddings" in name or "output_layer" in name:
            assert not gradients[name][VOCAB_SIZE:].any(), name
            gradients[name] = gradients[name][:VOCAB_SIZE]
    assert_equal_runs((losses, gradients), expected, 1e-6)


@pytest.mark.proves("D11")
def test_the_loss_is_the_cross_entropy_of_the_true_columns():
    config = tiny_config(make_vocab_size_divisible_by=128)
    model = tiny_model(config)
    batch = pack(config, mixed_samples())
    with torch.no_grad():
        logits = model.logits(model.decode(batch), batch.loss_rows)[:, :VOCAB_SIZE]
        expected = torch.nn.functional.cross_entropy(logits, batch.loss_labels, reduction="none")
        assert relative_difference(model(batch), expected) < 1e-6
        assert (model.logits(model.decode(batch), batch.loss_rows)[:, VOCAB_SIZE:] < -1e30).all()


def test_tied_embeddings_are_one_parameter_with_both_gradients():
    tied_config = tiny_config(untie_embeddings_and_output_weights=False)
    samples = mixed_samples()
    tied, untied = tiny_model(tied_config), tiny_model(tiny_config())
    assert "language_model.output_layer.weight" not in dict(tied.named_parameters())
    state = tied.state_dict()
    embedding = state["language_model.embedding.word_embeddings.weight"]
    state["language_model.output_layer.weight"] = embedding
    untied.load_state_dict(state)
    batch = pack(tied_config, samples)
    losses, gradients = losses_and_gradients(untied, batch)
    output = gradients.pop("language_model.output_layer.weight")
    assert output.any()
    gradients["language_model.embedding.word_embeddings.weight"] += output
    assert_equal_runs(losses_and_gradients(tied, batch), (losses, gradients), 1e-6)


@pytest.mark.parametrize(
    "tunable",
    [("mm_mlp_adapter",), ("mm_vision_tower",), ("mm_language_model",), PARTS[:2], PARTS[1:]],
    ids="+".join,
)
@pytest.mark.parametrize("granularity", [None, "full"])
def test_frozen_parts_have_no_gradient_and_change_no_other(tunable, granularity):
    samples = mixed_samples()
    recompute = {
        "recompute_granularity": granularity,
        "recompute_method": granularity and "uniform",
        "recompute_num_layers": granularity and 1,
    }
    expected = losses_and_gradients(tiny_model(tiny_config()), pack(tiny_config(), samples))
    config = tiny_config(**recompute)
    model = tiny_model(config)
    freeze_parts(model, tunable)
    losses, gradients = losses_and_gradients(model, pack(config, samples))
    assert torch.equal(losses, expected[0])
    for name, gradient in gradients.items():
        assert (gradient is not None) == (part_of(name) in tunable), name
        if gradient is not None:
            assert torch.equal(gradient, expected[1][name]), name


RECOMPUTE = {
    "selective": {"recompute_granularity": "selective"},
    "uniform-1": {"recompute_method": "uniform", "recompute_num_layers": 1},
    "uniform-2": {"recompute_method": "uniform", "recompute_num_layers": 2},
    "block-1": {"recompute_method": "block", "recompute_num_layers": 1},
    "block-2": {"recompute_method": "block", "recompute_num_layers": 2},
}


@pytest.mark.proves("D10", "D17")
@pytest.mark.parametrize("vision", [False, True], ids=["decoder", "tower-too"])
@pytest.mark.parametrize("how", RECOMPUTE.values(), ids=RECOMPUTE)
def test_recomputing_activations_changes_no_bit(how, vision):
    samples = mixed_samples()
    expected = losses_and_gradients(tiny_model(tiny_config()), pack(tiny_config(), samples))
    config = tiny_config(**{"recompute_granularity": "full", "recompute_vision": vision, **how})
    model = tiny_model(config)
    granularity = how.get("recompute_granularity", "full")
    tower = model.vision_model.decoder.config
    assert tower.recompute_granularity == (granularity if vision else None)
    forwards = count_forwards(model.language_model.decoder.layers[0])
    found = losses_and_gradients(model, pack(config, samples))
    assert_bitwise(found, expected)
    assert len(forwards) == (1 if "recompute_granularity" in how else 2)


@pytest.mark.parametrize("frozen", [False, True], ids=["learns", "frozen"])
def test_a_frozen_tower_keeps_nothing_and_is_never_recomputed(frozen):
    config = tiny_config(
        **RECOMPUTE["uniform-1"], recompute_granularity="full", recompute_vision=True
    )
    model = tiny_model(config)
    freeze_parts(model, PARTS if not frozen else [p for p in PARTS if p != "mm_vision_tower"])
    forwards, outputs = count_forwards(model.vision_model.decoder.layers[0]), []
    model.vision_model.register_forward_hook(lambda *call: outputs.append(call[-1]))
    losses_and_gradients(model, pack(config, mixed_samples()))
    assert len(forwards) == (1 if frozen else 2)
    assert outputs[0].requires_grad != frozen


@pytest.mark.proves("B12")
@pytest.mark.parametrize("recompute", [{}, {**RECOMPUTE["uniform-1"], "recompute_vision": True}])
@pytest.mark.parametrize("frozen", [False, True], ids=["learns", "frozen"])
def test_views_encoded_four_at_a_time_change_nothing(frozen, recompute):
    if recompute:
        recompute = {"recompute_granularity": "full", **recompute}
    samples, runs, counts, tracked = mixed_samples(), [], [], []
    for at_once in (None, 4):
        config = tiny_config(vision_views_at_once=at_once, **recompute)
        model = tiny_model(config)
        freeze_parts(model, [p for p in PARTS if not (frozen and p == "mm_vision_tower")])
        layer = model.vision_model.decoder.layers[0]
        forwards = count_forwards(layer)
        layer.register_forward_hook(lambda *call: tracked.append(call[-1][0].requires_grad))
        batch = pack(config, samples)
        runs.append(losses_and_gradients(model, batch))
        counts.append(len(forwards))
    assert batch.num_views % 4 and counts[1] == -(-batch.num_views // 4) * counts[0]
    assert any(tracked) != frozen
    found, expected = runs
    assert relative_difference(found[0], expected[0]) < TOLERANCE
    for name, gradient in expected[1].items():
        if gradient is None:
            assert found[1][name] is None
        else:
            assert relative_difference(found[1][name], gradient) < TOLERANCE, name


def count_forwards(layer):
    """A list that grows by one with every forward of the layer's attention projection."""
    calls = []
    layer.self_attention.linear_qkv.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_selective_recomputation_runs_the_core_of_attention_again():
    config = tiny_config(recompute_granularity="selective")
    model = tiny_model(config)
    calls = []
    attention = model.language_model.decoder.layers[0].self_attention.core_attention
    attention.register_forward_hook(lambda *_: calls.append(1))
    losses_and_gradients(model, pack(config, mixed_samples()))
    assert len(calls) == 2


def test_bfloat16_is_close_to_float32(kind):
    samples = mixed_samples()
    config = tiny_config(**kind, bf16=True)
    model, exact = tiny_model(config), tiny_model(tiny_config(**kind))
    exact.load_state_dict(model.state_dict())  # the rounded weights
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in exact.parameters())
    found = losses_and_gradients(model, pack(config, samples))
    expected = losses_and_gradients(exact, pack(config, samples))
    assert found[0].dtype == torch.float32
    assert abs(found[0].mean() / expected[0].mean() - 1) < 5e-3
    assert_equal_runs(found, expected, tolerance=6e-2)


def test_two_runs_give_the_same_bits():
    config = tiny_config()
    batch = pack(config, mixed_samples())
    first = losses_and_gradients(tiny_model(config), batch)
    assert_bitwise(losses_and_gradients(tiny_model(config), batch), first)


def test_uniform_chunks_that_do_not_divide_the_tower_are_single_layers():
    """Core would look for a layer beyond the last one."""
    config = tiny_config(
        vision_num_layers=3,
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=2,
        recompute_vision=True,
    )
    model = tiny_model(config)
    losses_and_gradients(model, pack(config, mixed_samples()))
    assert model.vision_model.decoder.config.recompute_num_layers == 1
    assert model.language_model.decoder.config.recompute_num_layers == 2


IMAGE_ROWS = {"image_separator": True, "image_start_end": True, "tile_position_embedding": True}


@pytest.mark.proves("A6", "A19", "A20")
def test_with_learned_rows_a_pack_is_its_samples_alone():
    config, samples = tiny_config(**IMAGE_ROWS), mixed_samples()
    model = tiny_model(config)
    found = losses_and_gradients(model, pack(config, samples))
    names = {"image_newline", "image_separator", "image_start", "image_end"}
    for name in (*names, "tile_position_embedding"):
        assert found[1][name].any(), name
    assert_equal_runs(found, sum_of_samples(model, config, samples))


LARGEST = {
    "canvas": {"mm_patch_merge_type": "spatial_unpad_maxpool2x2"},
    "canvas-odd": {"mm_patch_merge_type": "spatial_unpad_maxpool2x2", "vision_image_size": 42},
    "views": {"image_pool_stride": 2, "mm_spatial_pool_mode": "max"},
}


@pytest.mark.proves("A6", "A11")
@pytest.mark.parametrize("changes", LARGEST.values(), ids=LARGEST)
def test_with_the_largest_of_some_features_a_pack_is_its_samples_alone(changes):
    config = tiny_config(image_aspect_ratio="anyres", **changes)
    samples, model = mixed_samples(), tiny_model(config)
    batch = pack(config, samples)
    assert len(batch.max_taps) and (batch.weights >= 0).all()
    found = losses_and_gradients(model, batch)
    assert_equal_runs(found, sum_of_samples(model, config, samples))


@pytest.mark.proves("A6")
def test_tiles_have_places_beside_videos_of_the_largest():
    rows = {"image_aspect_ratio": "anyres", "tile_position_embedding": True}
    config = tiny_config(**rows, mm_spatial_pool_mode="max")
    samples, model = [tiny_sample([(84, 84)], 9, 1), with_video(3, 2)], tiny_model(config)
    batch = pack(config, samples)
    assert len(batch.max_taps) and (batch.feature_positions >= 0).any()
    found = losses_and_gradients(model, batch)
    assert found[1]["tile_position_embedding"].any()
    assert_equal_runs(found, sum_of_samples(model, config, samples))
    # A video has no tiles: whatever their places add, and it teaches them nothing.
    video = pack(config, samples[1:])
    before = losses_and_gradients(model, video)
    with torch.no_grad():
        model.tile_position_embedding.normal_()
    assert_bitwise(losses_and_gradients(model, video), before)
    assert not before[1]["tile_position_embedding"].any()
    averaged = tiny_config(**rows, mm_spatial_pool_mode="average")
    image = samples[:1]
    assert_bitwise(
        losses_and_gradients(model, pack(config, image)),
        losses_and_gradients(model, pack(averaged, image)),
    )


@pytest.mark.proves("A6")
def test_the_largest_are_those_of_torch():
    """The rows of an image of two tiles of nine features, and the gradient that reaches them."""
    changes = {**LARGEST["canvas-odd"], "image_grid_pinpoints": "(2x1)"}
    config = tiny_config(image_aspect_ratio="anyres", **changes)
    model = tiny_model(config)
    batch = pack(config, [tiny_sample([(84, 42)], 9, 1)])
    assert batch.num_views == 3 and len(batch.max_taps) == 3
    features = torch.randn(27, config.language.hidden_size, requires_grad=True)
    with torch.no_grad():
        model.encode_images = lambda *_: features  # the tower is not asked
    packed = model.embed(batch)[:, 0]
    first = next(iter((batch.taps[:, 0] == 0).nonzero()[0].tolist()))
    grid = features.view(3, 3, 3, -1).permute(0, 3, 1, 2)
    canvas = torch.cat((grid[1], grid[2]), dim=2)
    pooled = torch.nn.functional.max_pool2d(canvas, 2).flatten(1).T
    expected = torch.cat((grid[0].flatten(1).T, pooled))
    found = packed[first : first + 12]
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((rows * weights).sum(), features, retain_graph=True)[0]
        for rows in (found, expected)
    ]
    assert torch.equal(*gradients)


@pytest.mark.proves("A18")
def test_positions_begin_as_zeros_and_change_nothing():
    samples = mixed_samples()
    plain, config = tiny_config(), tiny_config(tile_position_embedding=True)
    model, other = tiny_model(plain), build_llava_model(config)
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert missing == ["tile_position_embedding"] and not unexpected
    assert other.tile_position_embedding.shape == (9, 32)
    expected = losses_and_gradients(model, pack(plain, samples))
    losses, gradients = losses_and_gradients(other, pack(config, samples))
    positions = gradients.pop("tile_position_embedding")
    assert_bitwise((losses, gradients), expected)
    assert positions.any(1).tolist() == used_positions(samples, config)


def used_positions(samples, config):
    settings = image_settings(config)
    used = set()
    for sample in samples:
        for size in sample.image_sizes if len(sample.image_sizes) == 1 else ():
            used |= set(view_positions(size, settings, single_view=False))
    return [position in used for position in range(9)]
