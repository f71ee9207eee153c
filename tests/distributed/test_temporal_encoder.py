"""--temporal-encoder-layers over videos, images and text: every layout is one rank."""

import numpy as np
import pytest
from communication_jobs import predicted_and_counted
from distributed_jobs import preprocess_records, train
from distributed_layouts import (
    COMMON,
    OVERLAPPED,
    Layout,
    assert_same_parameters,
    assert_same_steps,
    distributed,
)
from flop_jobs import count_flops
from PIL import Image

ENCODER = ("--temporal-encoder-layers=2", "--temporal-encoder-max-frames=12")
# A window of one sample makes every sample a pack: most have no video.
FLAGS = (*COMMON, *ENCODER, "--packing-window=1", "--seq-length=384")


@pytest.fixture(scope="module")
def store(pool, setup, tmp_path_factory):
    """One or two videos of ten frames in a sample, an image, or text alone."""
    folder = tmp_path_factory.mktemp("videos")
    generator = np.random.default_rng(3)
    names = [f"frames-{number}/{place}.png" for number in range(6) for place in range(3)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    records = []
    for number in range(48):
        first, other = f"frames-{number % 5}", f"frames-{number % 5 + 1}"
        kind, visual = (
            ("video", first),
            ("image", names[number % len(names)]),
            ("video", [first, other]),
            ("text", None),
        )[number % 4]
        marks = f"<{kind}>\n" * (0 if visual is None else 2 if visual == [first, other] else 1)
        turns = [
            {"from": "human", "value": f"{marks}what is it?"},
            {"from": "gpt", "value": "x y " * (1 + number % 3)},
        ]
        made = {"id": str(number), "conversations": turns}
        records.append(made if visual is None else {**made, kind: visual})
    pool.run(preprocess_records, records, folder, setup.folder / "plain-hf", folder / "train")
    return folder / "train"


@pytest.fixture(scope="module")
def one_rank(pool, setup, store):
    arguments = setup.arguments(*FLAGS, f"--data-path={store}", batch=8)
    return pool.run(train, arguments, with_shards=True)[0]


@pytest.mark.proves("A6")
@distributed(Layout(cp=2, tp=2, sp=True, vision="data"))
def test_videos_of_the_largest_beside_tiles_with_places(pool, setup, store, layout):
    flags = [*COMMON, "--packing-window=1", "--seq-length=384", f"--data-path={store}"]
    flags += ["--mm-spatial-pool-mode=max", "--tile-position-embedding"]
    expected = pool.run(train, setup.arguments(*flags, batch=8), with_shards=True)[0]
    arguments = setup.arguments(*flags, *layout.flags, batch=8)
    results = pool.run(train, arguments, world_size=layout.world_size, with_shards=True)
    assert_same_steps(results[0]["steps"], expected["steps"])
    assert_same_parameters([rank["shards"] for rank in results], expected["shards"], 1e-4)


@pytest.mark.proves("B10", "C8")
@distributed(
    Layout(tp=2, pp=2),
    Layout(tp=4, sp=True, dp=2, **OVERLAPPED),
    Layout(pp=2, dp=2, vpp_layers=1, **OVERLAPPED),
)
def test_a_layout_equals_one_rank(pool, setup, store, one_rank, layout):
    arguments = setup.arguments(*FLAGS, f"--data-path={store}", *layout.flags, batch=8)
    results = pool.run(train, arguments, world_size=layout.world_size, with_shards=True)
    assert_same_steps(results[0]["steps"], one_rank["steps"])
    assert_same_parameters([rank["shards"] for rank in results], one_rank["shards"], 1e-4)


@pytest.mark.proves("C8")
def test_every_kind_of_sample_is_counted(one_rank):
    """A sample is a pack: an epoch of 48 packs is six steps, of which five were run."""
    text, image, images, video = (sum(kind) for kind in zip(*kinds_of(one_rank), strict=True))
    assert (text + image + images + video, images) == (40, 0)
    assert 4 <= text <= 12 and 4 <= image <= 12 and 16 <= video <= 24


def kinds_of(run):
    return [step["kinds"] for step in run["steps"]]


def test_it_learns(pool, setup, store, one_rank):
    """Against a run that starts alike and has no encoder: the first step is the same."""
    without = [flag for flag in FLAGS if flag not in ENCODER]
    arguments = setup.arguments(*without, f"--data-path={store}", batch=8)
    other = pool.run(train, arguments)[0]["steps"]
    losses = [step["lm loss"] for step in one_rank["steps"]]
    assert losses[0] == other[0]["lm loss"]
    assert losses[-1] != pytest.approx(other[-1]["lm loss"], rel=1e-5)


@pytest.mark.proves("B10")
def test_a_checkpoint_goes_on_at_another_layout(pool, setup, store, one_rank, tmp_path):
    def run(*flags, world_size=1, steps=5):
        arguments = setup.arguments(*FLAGS, f"--data-path={store}", *flags, batch=8, steps=steps)
        return pool.run(train, arguments, world_size=world_size)[0]["steps"]

    where = (f"--load={tmp_path}", f"--save={tmp_path}", "--save-interval=3")
    run(*where, "--tensor-model-parallel-size=2", "--exit-interval=3", world_size=2)
    steps = run(*where, "--pipeline-model-parallel-size=2", world_size=2)
    assert [step["iteration"] for step in steps] == [4, 5]
    for step, reference in zip(steps, one_rank["steps"][3:], strict=True):
        assert step["lm loss"] == pytest.approx(reference["lm loss"], rel=1e-4)


@pytest.mark.parametrize("parts", ["mm_mlp_adapter", "mm_vision_tower,mm_mlp_adapter"])
def test_the_log_says_what_was_computed(pool, setup, store, parts):
    flags = [*FLAGS, "--cross-image-attention", f"--mm-tunable-parts={parts}"]
    arguments = setup.arguments(*flags, f"--data-path={store}", steps=3, batch=8)
    ((counted, useful, recomputed),) = pool.run(count_flops, arguments)
    assert (counted, recomputed) == (useful, 0)


def test_what_was_sent_was_predicted(pool, setup, store):
    flags = [*FLAGS, f"--data-path={store}", "--tensor-model-parallel-size=2"]
    for result in pool.run(predicted_and_counted, setup.arguments(*flags, batch=8), world_size=2):
        assert result["counted"] == result["predicted"]
