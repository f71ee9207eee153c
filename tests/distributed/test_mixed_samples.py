"""Samples of no, one and several images, some without labels, read by workers: as on one rank."""

import numpy as np
import pytest
from distributed_faults import train_with_few_labels
from distributed_jobs import preprocess_records
from distributed_layouts import Layout, distributed
from PIL import Image

# Several images of a sample fit into a pack as padded views; tiles of each would not.
VIEWS = ("--multi-image-views=one_padded",)


@pytest.fixture(scope="module")
def store(pool, setup, tmp_path_factory):
    """60 samples of 0 to 3 images each, and of other lengths."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "images").mkdir()
    generator = np.random.default_rng(1)
    records = []
    for number in range(60):
        names = [f"images/{number}-{place}.png" for place in range(number % 4)]
        for name in names:
            width, height = (int(side) for side in generator.integers(30, 180, 2))
            pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        question = "<image>\n" * len(names) + "what is it? " + "word " * (number % 7)
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": "x " * (1 + number % 9)},
        ]
        record = {"id": str(number), "conversations": turns}
        images = names[0] if len(names) == 1 else names
        records.append({**record, "image": images} if names else record)
    pool.run(preprocess_records, records, folder, setup.folder / "plain-hf", folder / "train")
    return folder / "train"


@pytest.mark.parametrize("reduction", ["token", "sample"])
@distributed(
    Layout(cp=2, tp=2, sp=True, vision="data"),
    Layout(pp=2, vpp_layers=1, distopt=True, grad_overlap=True, param_overlap=True),
)
def test_steps_and_held_out_losses_are_those_of_one_rank(pool, setup, store, layout, reduction):
    """Two of three samples have no label, so many packs of one sample have none."""
    flags = [f"--data-path={store}", f"--valid-data-path={store}", "--packing-window=1"]
    flags += ["--eval-interval=2", "--eval-iters=3", f"--loss-reduction={reduction}"]
    expected = pool.run(train_with_few_labels, setup.arguments(*VIEWS, *flags))[0]
    arguments = setup.arguments(*VIEWS, *flags, *layout.flags, "--num-workers=2")
    found = pool.run(train_with_few_labels, arguments, world_size=layout.world_size)[0]
    for step, reference in zip(found["steps"], expected["steps"], strict=True):
        for name in ("lm loss", "grad norm"):
            assert step[name] == pytest.approx(reference[name], rel=1e-4), (name, step)
    assert len(expected["validations"]) == 2
    assert found["validations"] == pytest.approx(expected["validations"], rel=1e-4)
