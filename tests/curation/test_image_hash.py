import io
from itertools import combinations

import imagehash
import numpy as np
import pytest
from PIL import Image
from skimage import data

from megatron_llava.curation.hamming_index import hamming_distance
from megatron_llava.curation.image_hash import DEFAULT_DISTANCE, MAX_DISTANCE, perceptual_hash

NAMES = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "moon", "hubble_deep_field")
PHOTOGRAPHS = {n: Image.fromarray(np.asarray(getattr(data, n)())).convert("RGB") for n in NAMES}


def jpeg(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def scaled(image, factor):
    return image.resize((round(image.width * factor), round(image.height * factor)))


def cropped(image, pixels):
    return image.crop((pixels, pixels, image.width - pixels, image.height - pixels))


CHANGES = {
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 30": lambda image: jpeg(image, 30),
    "half": lambda image: scaled(image, 0.5),
    "larger": lambda image: scaled(image, 1.5),
    "half, JPEG 50": lambda image: jpeg(scaled(image, 0.5), 50),
    "cropped": lambda image: cropped(image, 2),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_default_finds_what_was_changed_a_little(change):
    for name, image in PHOTOGRAPHS.items():
        bits = hamming_distance(perceptual_hash(image), perceptual_hash(CHANGES[change](image)))
        assert bits <= DEFAULT_DISTANCE, name


def test_different_photographs_are_far_from_each_other():
    hashes = map(perceptual_hash, PHOTOGRAPHS.values())
    assert min(hamming_distance(a, b) for a, b in combinations(hashes, 2)) > MAX_DISTANCE


def test_bits_are_those_of_imagehash():
    for image in PHOTOGRAPHS.values():
        assert perceptual_hash(image) == int(str(imagehash.phash(image)), 16)
