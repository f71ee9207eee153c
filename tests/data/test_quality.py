import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import laplace
from skimage import data
from skimage.measure import shannon_entropy

from megatron_llava.data.duplicates import SeenRecords
from megatron_llava.data.preprocess import preprocess
from megatron_llava.data.quality import QualityFilters, sharpness
from megatron_llava.data.store import Store

PHOTOGRAPH = Image.fromarray(data.astronaut()).resize((128, 128))


def save(folder, name, image):
    image.save(folder / name)
    return name


@pytest.fixture
def judged(tmp_path, make_settings):
    """Runs over records with one image each; the summary and the numbers of those that stay."""
    folder = tmp_path / "images"
    folder.mkdir()

    def run(images, answers=None, numbered=True, **changes):
        answers = answers or ["a long enough answer"] * len(images)
        records = [
            {
                "id": str(number),
                "image": save(folder, f"{number}.png", image),
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat?"},
                    {"from": "gpt", "value": f"{number} {answer}" if numbered else answer},
                ],
            }
            for number, (image, answer) in enumerate(zip(images, answers, strict=True))
        ]
        settings = make_settings(records, tmp_path, image_folder=folder, overwrite=True, **changes)
        summary = preprocess(settings, log=io.StringIO())
        store = Store(settings.output_prefix)
        encoded = [store.images(number)[0] for number in range(len(store))]
        files = [(folder / f"{number}.png").read_bytes() for number in range(len(images))]
        return summary, [files.index(item) for item in encoded]

    return run


def sized(width, height):
    return PHOTOGRAPH.resize((width, height))


@pytest.mark.proves("C10")
def test_sizes(judged):
    images = [sized(64, 64), sized(64, 31), sized(64, 32), sized(20, 90), sized(65, 32)]
    summary, kept = judged(images, min_image_side=32, max_image_aspect_ratio=2.0)
    assert kept == [0, 2]
    assert summary.left_out == {"--max-image-aspect-ratio": 1, "--min-image-side": 2}
    assert "2 left out by --min-image-side, " in str(summary)
    assert (summary.samples, summary.bad_records) == (2, 0)


@pytest.mark.proves("C10")
def test_text(judged):
    summary, kept = judged([sized(9, n) for n in (9, 8, 7)], ["  ", "abc", "ab"], min_text_length=5)
    assert kept == [1]
    assert summary.left_out == {"--min-text-length": 2}


@pytest.mark.proves("C10")
@pytest.mark.parametrize("workers", [1, 2])
def test_pixels(judged, workers):
    flat = Image.new("RGB", (128, 128), (200, 30, 30))
    blurred = PHOTOGRAPH.filter(ImageFilter.GaussianBlur(6))
    summary, kept = judged(
        [PHOTOGRAPH, flat, blurred],
        min_image_entropy=3.0,
        min_image_sharpness=50.0,
        workers=workers,
    )
    assert kept == [0]
    assert summary.left_out == {"--min-image-entropy": 1, "--min-image-sharpness": 1}


def test_measures_are_those_of_scipy_and_scikit_image():
    grey = PHOTOGRAPH.convert("L")
    expected = laplace(np.asarray(grey, dtype=np.float64))[1:-1, 1:-1].var()
    assert sharpness(grey) == pytest.approx(expected, rel=1e-6)
    assert grey.entropy() == pytest.approx(shannon_entropy(np.asarray(grey)), rel=1e-6)
    assert sharpness(Image.new("L", (2, 50))) == 0.0


@pytest.mark.proves("C10")
def test_a_function_of_the_user(judged, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_filter.py").write_text(
        "def odd(record):\n    return int(record.id) % 2 == 1\n"
        "def fails(record):\n    raise KeyError('score')\n"
        "def score(record):\n    return 0.3\n"
        "number = 3\n"
    )
    images = [sized(9, 9 + number) for number in range(4)]
    summary, kept = judged(images, keep_record="users_filter:odd")
    assert kept == [1, 3]
    assert summary.left_out == {"--keep-record": 2}
    for name, message in [
        ("fails", r"data\.json: record 0 .*--keep-record users_filter:fails failed: KeyError"),
        ("score", r"record 0 .*returned 0\.3, expected True or False"),
        ("absent", "--keep-record users_filter:absent: expected MODULE:FUNCTION"),
        ("number", "--keep-record users_filter:number: is no function"),
    ]:
        with pytest.raises(ValueError, match=message):
            judged(images, keep_record=f"users_filter:{name}")
    with pytest.raises(ValueError, match="--keep-record odd: expected MODULE:FUNCTION"):
        judged(images, keep_record="odd")
    sys.modules.pop("users_filter")


@pytest.mark.proves("C10")
@pytest.mark.parametrize("workers", [1, 2])
def test_exact_duplicates(judged, workers):
    """Equal in tokens and in image bytes; records of either alone stay."""
    first, second = sized(20, 20), sized(20, 21)
    images = [first, second, first, first] * 9
    answers = ["a", "a", "a", "b"] * 9
    summary, kept = judged(
        images, answers, numbered=False, drop_exact_duplicates=True, workers=workers
    )
    assert kept == [0, 1, 0]
    assert summary.left_out == {"--drop-exact-duplicates": 33}


def test_records_that_only_join_to_the_same_bytes():
    seen = SeenRecords()
    tokens = np.array([1, 2], dtype=np.int32)
    assert not seen.again(tokens, [b"ab", b"c"])
    assert not seen.again(tokens, [b"a", b"bc"])
    assert not seen.again(tokens[:1], [tokens[1:].tobytes() + b"ab", b"c"])
    assert not seen.again(tokens, [])
    assert seen.again(tokens.copy(), [b"ab", b"c"])


def test_nothing_left_is_refused(judged, tmp_path):
    with pytest.raises(ValueError, match=r"no record is left: --min-image-side 2 of 2"):
        judged([sized(9, 9), sized(9, 8)], min_image_side=10)
    assert not list(tmp_path.glob("store*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_text_length": -1}, "--min-text-length -1: expected 0 or more"),
        ({"min_image_entropy": float("nan")}, "--min-image-entropy nan: expected 0 or more"),
        ({"max_image_aspect_ratio": 0.5}, "--max-image-aspect-ratio 0.5: longer over shorter"),
    ],
)
def test_limits_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        QualityFilters(**changes)
