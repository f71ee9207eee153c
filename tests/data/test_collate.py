from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_llava.data.collate import collate
from megatron_llava.data.pack_positions import padded_rows
from megatron_llava.data.packed_batch import PackedBatch, TensorBatch
from megatron_llava.data.row_plan import NumpyPlanner
from megatron_llava.data.sample import Sample
from megatron_llava.data.store import Store
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.tiles import image_views, open_image
from megatron_llava.vision.token_layout import image_layout

DTYPES = {
    "token_ids": np.int64,
    "position_ids": np.int64,
    "cu_seqlens": np.int32,
    "loss_rows": np.int64,
    "loss_labels": np.int64,
    "taps": np.int64,
    "weights": np.float32,
    "csr_offsets": np.int64,
    "csr_rows": np.int64,
    "csr_weights": np.float32,
    "tiles": np.uint8,
}


def reference(samples, image_settings, total_rows=None):
    """The definition of a packed batch, written position by position."""
    tokens = image_settings.tokens_per_view
    layouts = [
        [
            image_layout(
                size, image_settings, single_view=len(x.image_sizes) > 1, after_image=number > 0
            )
            for number, size in enumerate(x.image_sizes)
        ]
        for x in samples
    ]
    num_views = sum(layout.num_views for of_sample in layouts for layout in of_sample)
    newline = max(num_views, 1) * tokens
    first_text = newline + image_settings.num_special_rows
    token_ids, rows, positions, starts, loss = [], [], [], [0], []
    first_view = 0
    for sample, of_sample in zip(samples, layouts, strict=True):
        images = iter(of_sample)
        position = 0
        for token, label in zip(sample.token_ids.tolist(), sample.label_mask, strict=True):
            if token != IMAGE_TOKEN_INDEX:
                if label and position > 0:
                    loss.append((len(rows) - 1, token))
                rows.append([(first_text + len(token_ids), 1.0)])
                token_ids.append(token)
                positions.append(position)
                position += 1
                continue
            layout = next(images)
            for taps, weights in zip(layout.taps, layout.weights, strict=True):
                row = []
                for tap, weight in zip(taps.tolist(), weights.tolist(), strict=True):
                    if weight:
                        source = newline - 1 - tap if tap < 0 else first_view * tokens + tap
                        row.append((source, weight))
                rows.append(row)
                positions.append(position)
                position += 1
            first_view += layout.num_views
        starts.append(len(rows))
    num_rows, total_rows = len(rows), total_rows or len(rows)
    attended = sum((b - a) ** 2 for a, b in zip(starts, starts[1:], strict=False))
    if total_rows > num_rows:
        positions += range(total_rows - num_rows)
        rows += [[]] * (total_rows - num_rows)
        starts.append(total_rows)
    uses = [[] for _ in range(first_text + len(token_ids))]
    for number, row in enumerate(rows):
        for source, weight in row:
            uses[source].append((number, weight))
    return {
        "token_ids": token_ids,
        "position_ids": positions,
        "cu_seqlens": starts,
        "max_seqlen": max(b - a for a, b in zip(starts, starts[1:], strict=False)),
        "loss_rows": [row for row, _ in loss],
        "loss_labels": [label for _, label in loss],
        "rows": rows,
        "uses": uses,
        "num_samples": len(samples),
        "num_images": sum(len(of_sample) for of_sample in layouts),
        "num_views": num_views,
        "num_rows": num_rows,
        "attended": attended,
        "num_loss_rows": len(loss),
    }


def used_taps(batch):
    """rows[r] = [(tap, weight), ...] without the unused ones, which must be 0."""
    assert not batch.taps[batch.weights == 0].any()
    return [
        [(tap, weight) for tap, weight in zip(taps, weights, strict=True) if weight]
        for taps, weights in zip(batch.taps.tolist(), batch.weights.tolist(), strict=True)
    ]


def used_rows(batch):
    """uses[t] = [(row, weight), ...] of each row of the virtual table."""
    bounds = batch.csr_offsets.tolist()
    pairs = list(zip(batch.csr_rows.tolist(), batch.csr_weights.tolist(), strict=True))
    assert bounds[0] == 0 and bounds[-1] == len(pairs)
    return [pairs[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]


def assert_is(batch, expected):
    lists = {"rows": used_taps, "uses": used_rows}
    for name, value in expected.items():
        found = lists[name](batch) if name in lists else getattr(batch, name)
        found = found.tolist() if isinstance(found, np.ndarray) else found
        assert found == value, name
    for name, dtype in DTYPES.items():
        if getattr(batch, name) is not None:
            assert getattr(batch, name).dtype == dtype, name


def assert_equal(a: PackedBatch, b: PackedBatch):
    for field in fields(PackedBatch):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def make_sample(tokens, mask, sizes):
    return Sample(
        token_ids=np.array(tokens, np.int32),
        label_mask=np.array(mask, np.uint8),
        image_sizes=tuple(sizes),
        images=None,
        source="sample",
    )


@st.composite
def random_samples(draw):
    """Any mix of text and images, any mask: also an image first, last, or two in a row."""
    samples = []
    for _ in range(draw(st.integers(0, 4))):
        kinds = draw(st.lists(st.sampled_from("ttti"), min_size=1, max_size=8))
        tokens = [IMAGE_TOKEN_INDEX if kind == "i" else draw(st.integers(0, 9)) for kind in kinds]
        mask = [int(kind == "t" and draw(st.booleans())) for kind in kinds]
        side = st.integers(4, 40)
        sizes = [(draw(side), draw(side)) for kind in kinds if kind == "i"]
        samples.append(make_sample(tokens, mask, sizes))
    return samples


@pytest.mark.parametrize("has_specials", [False, True])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=random_samples(), multiple=st.integers(1, 7), spare=st.none() | st.integers(0, 3))
def test_layout_equals_the_reference(
    image_settings, compiled_planner, has_specials, samples, multiple, spare
):
    specials = {"image_separator": has_specials, "image_start_end": has_specials}
    image_settings = replace(image_settings, **specials)
    rows = reference(samples, image_settings, 1)["num_rows"]
    total = max(-(-rows // multiple), 1) * multiple
    pad_to = None
    if spare is not None:
        pad_to = total = total + spare * multiple
    how = {"pad_multiple": multiple, "pad_to": pad_to, "with_pixels": False}
    batch = collate(samples, image_settings, planner=NumpyPlanner(), **how)
    assert batch.tiles is None
    assert_is(batch, reference(samples, image_settings, total))
    assert_equal(collate(samples, image_settings, planner=compiled_planner, **how), batch)
    # Each virtual row is used where it should be: text rows once, all of them.
    first_special = max(batch.num_views, 1) * image_settings.tokens_per_view
    first_text = first_special + image_settings.num_special_rows
    text_taps = batch.taps[batch.taps >= first_text]
    np.testing.assert_array_equal(text_taps, first_text + np.arange(len(batch.token_ids)))


def test_stored_samples_with_pixels(store, image_settings):
    samples = [store.load(index) for index in range(9)]
    batch = collate(samples, image_settings, pad_multiple=8)
    assert len(batch.position_ids) % 8 == 0
    assert_is(batch, reference(samples, image_settings, len(batch.position_ids)))
    views = [
        image_views(open_image(data, ""), image_settings, single_view=len(sample.images) > 1)
        for sample in samples
        for data in sample.images
    ]
    np.testing.assert_array_equal(batch.tiles, np.concatenate(views))
    assert (batch.weights[:, 1] > 0).any(), "no bilinear row was tested"
    without = collate(samples, image_settings, pad_multiple=8, with_pixels=False)
    assert without.tiles is None
    assert_equal(replace(without, tiles=batch.tiles), batch)


def test_packed_rows_are_the_rows_of_each_sample_alone(store, image_settings):
    """The operator on random features: packing changes no sample's rows."""
    samples = [store.load(index, with_images=False) for index in range(12)]
    generator = np.random.default_rng(0)
    embedding = generator.normal(size=(store.sample(0)[0].max() + 400, 3))
    newline = generator.normal(size=(1, 3))

    def rows(batch, features):
        table = np.concatenate([features, newline, embedding[batch.token_ids]])
        return (table[batch.taps] * batch.weights[..., None]).sum(axis=1)

    alone, all_features = [], []
    for sample in samples:
        batch = collate([sample], image_settings, with_pixels=False)
        count = image_settings.tokens_per_view
        features = generator.normal(size=(max(batch.num_views, 1) * count, 3))
        all_features.append(features[: batch.num_views * count])
        alone.append(rows(batch, features))
    packed = collate(samples, image_settings, pad_multiple=16, with_pixels=False)
    expected = np.concatenate(alone)
    found = rows(packed, np.concatenate(all_features))
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-12)
    assert not found[len(expected) :].any()


@pytest.mark.parametrize("planner_name", ["python", "compiled"])
def test_an_image_without_tokens_is_named(image_settings, compiled_planner, planner_name):
    planner = {"python": NumpyPlanner(), "compiled": compiled_planner}[planner_name]
    settings_ = replace(image_settings, image_aspect_ratio="nobase")
    good = make_sample([1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX], [0, 0, 0], [(9, 9), (9, 9)])
    thin = replace(make_sample([IMAGE_TOKEN_INDEX], [0], [(5000, 1)]), source="thin one")
    with pytest.raises(ValueError, match="^thin one: image of 5000x1 pixels is too thin"):
        collate([good, thin, good], settings_, with_pixels=False, planner=planner)


@pytest.mark.proves("D11")
def test_label_positions_by_hand(image_settings):
    settings_ = replace(image_settings, image_aspect_ratio="pad", grid_pinpoints=())
    image = IMAGE_TOKEN_INDEX
    samples = [
        # 16 patches and a newline: rows 0 to 16, then the answer in rows 17 and 18.
        make_sample([image, 5, 6], [0, 1, 1], [(9, 9)]),
        # Its first token is supervised, but nothing predicts it: above all not the sample before.
        make_sample([7, 8], [1, 1], []),
    ]
    batch = collate(samples, settings_, with_pixels=False)
    assert batch.loss_rows.tolist() == [16, 17, 19]
    assert batch.loss_labels.tolist() == [5, 6, 8]
    assert batch.cu_seqlens.tolist() == [0, 19, 21]
    assert batch.taps[16, 0] == 16 and batch.taps[17:, 0].tolist() == [17, 18, 19, 20]


def test_text_only_pack_has_one_dummy_view(image_settings):
    sample = replace(make_sample([1, 2], [0, 1], []), images=())
    batch = collate([sample], image_settings)
    assert batch.tiles.shape == (1, 3, 8, 8) and not batch.tiles.any()
    assert (batch.num_views, batch.num_images) == (0, 0)
    # One dummy view of 16 features and the newline row come before the text.
    assert batch.taps[:, 0].tolist() == [17, 18]


@pytest.mark.parametrize(("multiple", "pad_to", "rows"), [(1, None, 1), (8, None, 8), (4, 12, 12)])
def test_empty_pack(image_settings, multiple, pad_to, rows):
    batch = collate([], image_settings, pad_multiple=multiple, pad_to=pad_to)
    assert batch.cu_seqlens.tolist() == [0, rows] and batch.max_seqlen == rows
    assert batch.num_samples == batch.num_rows == len(batch.token_ids) == len(batch.loss_rows) == 0
    assert batch.taps.shape == (rows, 4) and not batch.weights.any()
    assert batch.tiles.shape == (1, 3, 8, 8)


def test_padded_rows():
    assert [padded_rows(n, 4) for n in (0, 1, 4, 5)] == [4, 4, 4, 8]
    assert padded_rows(5, 4, 12) == 12
    for bad in (4, 10):
        with pytest.raises(ValueError, match=f"cannot pad 5 positions to {bad}: .* at least 8 and"):
            padded_rows(5, 4, bad)


def test_ranks_read_the_images_that_they_decode(store, image_settings, monkeypatch):
    """Three ranks share the views of two samples: an image is read by those with views of it."""
    read: list[int] = []
    image = Store._image
    monkeypatch.setattr(Store, "_image", lambda self, n: read.append(n) or image(self, n))
    samples = [store.load(index) for index in (2, 4)]
    whole = collate(samples, image_settings)
    assert read == list(range(*store.image_offsets[[2, 3]])) + list(
        range(*store.image_offsets[[4, 5]])
    )
    everything, tiles = list(read), []
    for rank in range(3):
        read.clear()
        tiles.append(collate(samples, image_settings, view_share=(rank, 3)).tiles)
        assert 0 < len(read) < len(everything)
    np.testing.assert_array_equal(np.concatenate(tiles), whole.tiles)


def test_image_errors_name_the_sample(store, image_settings):
    sample = store.load(0)
    short = replace(sample, images=(sample.images[0][:60],))
    with pytest.raises(
        ValueError, match=r"store: sample 0 \(.*r0\)\): image 0: cannot read an image"
    ):
        collate([short], image_settings)
    other = replace(sample, image_sizes=((21, 9),))
    message = r"sample 0 \(.*\): image 0 decodes to \(20, 9\) pixels, stored as \(21, 9\)"
    with pytest.raises(ValueError, match=message):
        collate([other], image_settings)


def test_to_torch(store, image_settings):
    batch = collate([store.load(0), store.load(3)], image_settings)
    tensors = batch.to_torch("cpu")
    assert isinstance(tensors, TensorBatch)
    for field in fields(PackedBatch):
        value, tensor = getattr(batch, field.name), getattr(tensors, field.name)
        if isinstance(value, np.ndarray):
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), value)
            assert tensor.numpy().dtype == value.dtype
        else:
            assert tensor == value
    assert collate([], image_settings, with_pixels=False).to_torch().tiles is None
