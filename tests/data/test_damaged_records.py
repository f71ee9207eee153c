"""What becomes of each kind of bad record or odd image: refused in one line, or used as stated."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_llava.data.preprocess import preprocess
from megatron_llava.data.store import Store
from megatron_llava.vision.tiles import open_image

ASK = {"from": "human", "value": "<image>\nhi"}
TURNS = [ASK, {"from": "gpt", "value": "hello"}]


def saved(image: Image.Image, kind: str, **how) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def picture(width: int = 20, height: int = 12, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + (chunk(b"IEND", b""))
    )


PNG = saved(picture(), "PNG")
# name: (the image file, what its refusal says)
BAD_IMAGES = {
    "zero_bytes": (b"", "cannot read an image from its 0 bytes"),
    "text": (b"<html>404</html>", "unknown format"),
    "cut": (PNG[: len(PNG) // 2], "cannot read"),
    "bomb": (bomb(20000, 20000), "cannot read .* decompression bomb"),
    "grey_16_bit": (
        saved(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "PNG"),
        "I;16 would nearly all become white",
    ),
    "grey_float": (
        saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        "grey values of mode F",
    ),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unknown format"),
}
# name: (changed keys of a record, what its refusal says)
BAD_RECORDS = {
    "no_turns": ({"conversations": []}, "no 'conversations'"),
    "null_turns": ({"conversations": None}, "no 'conversations'"),
    "text_as_turns": ({"conversations": "hi"}, "conversations is str"),
    "nested_turns": ({"conversations": [TURNS]}, "turn 1 is list"),
    "no_answer": ({"conversations": [ASK]}, "no answer"),
    "empty_answer": ({"conversations": [ASK, {"from": "gpt", "value": " "}]}, "empty answer"),
    "two_questions": ({"conversations": [ASK, ASK]}, "turn 2 is human where gpt was expected"),
    "unknown_role": ({"conversations": [{"from": "cat", "value": "x"}]}, "is from 'cat'"),
    "number_as_text": ({"conversations": [{"from": "human", "value": 3}]}, "needs strings"),
    "null_text": ({"conversations": [{"from": "human", "value": None}]}, "needs strings"),
    "no_placeholder": (
        {"conversations": [{"from": "human", "value": "hi"}, TURNS[1]]},
        "0 <image>",
    ),
    "no_image": ({"image": None}, "1 <image> placeholders .* 0 images"),
    "absent_image": ({"image": "absent.png"}, r"absent\.png: No such file"),
    "folder_as_image": ({"image": "."}, "cannot read image .*: Is a directory"),
    "nested_images": ({"image": [["good.png"]]}, "'image' must be a path"),
    "number_as_image": ({"image": 7}, "'image' must be a path"),
    "empty_name": ({"image": ""}, "'image' must be a path"),
    "outside": ({"image": "../../../../../../etc/passwd"}, "is not inside --image-folder"),
    "absolute": ({"image": "/etc/passwd"}, "is not inside --image-folder"),
    "null_byte": ({"image": "a\0.png"}, "null"),
    "in_code": (
        {
            "conversations": [
                {"from": "human", "value": "<image>\nfix ```print('<image>')```"},
                TURNS[1],
            ]
        },
        "2 <image> placeholders .* 1 images",
    ),
}
BAD_LINES = {
    "not_json": (b'{"image": "good.png", ', "not valid JSON"),
    "not_utf8": (b'{"id": "\xff"}', "not valid UTF-8 at byte"),
    "a_list": (b'["good.png"]', "expected an object, found a list"),
    "a_number": (b"17", "expected an object, found the value 17"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "nan": (b'{"id": NaN}', "no 'conversations'"),
}


def damaged(folder: Path) -> dict[str, tuple[bytes, str]]:
    """The line and the message of every bad record; image files are written to the folder."""
    lines = dict(BAD_LINES)
    for name, (changes, message) in BAD_RECORDS.items():
        made = {"id": name, "image": "good.png", "conversations": TURNS} | changes
        lines[name] = json.dumps(made).encode(), message
    for name, (content, message) in BAD_IMAGES.items():
        (folder / f"{name}.png").write_bytes(content)
        made = {"id": name, "image": f"{name}.png", "conversations": TURNS}
        lines[name] = json.dumps(made).encode(), message
    return lines


@pytest.mark.proves("C10")
@pytest.mark.parametrize("workers", [1, 2])
def test_two_percent_of_bad_records(make_settings, tmp_path, workers):
    """50 good records to each bad one: exactly the bad ones are skipped, each with its reason."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.png").write_bytes(PNG)
    bad = damaged(images)
    good = json.dumps({"id": "good", "image": "good.png", "conversations": TURNS}).encode()
    lines = []
    for line, _ in bad.values():
        lines += [good] * 25 + [line] + [good] * 24
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(lines))
    settings = make_settings(
        [], tmp_path, input=path, image_folder=images, workers=workers, max_bad_records=len(bad)
    )
    log = io.StringIO()
    summary = preprocess(settings, log=log)
    assert summary.bad_records == len(bad)
    assert summary.samples == len(lines) - len(bad)
    skipped = [line for line in log.getvalue().splitlines() if line.startswith("skipped: ")]
    for number, ((name, (_, message)), line) in enumerate(zip(bad.items(), skipped, strict=True)):
        assert line.startswith(f"skipped: {path}:{number * 50 + 26}: "), (name, line)
        assert re.search(message, line), (name, line)

    one_fewer = make_settings(
        [], tmp_path, input=path, image_folder=images, max_bad_records=len(bad) - 1, overwrite=True
    )
    with pytest.raises(ValueError, match=f"this is bad record {len(bad)}, --max-bad-records is"):
        preprocess(one_fewer, log=log)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    return saved(picture(), "JPEG", exif=exif)


def animated() -> bytes:
    frames = [picture(seed=seed) for seed in range(3)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def transparent_palette() -> bytes:
    return saved(picture().quantize(16), "PNG", transparency=3)


# name: (the file, its size as stored)
ODD_IMAGES = {
    "cmyk.jpg": (saved(picture().convert("CMYK"), "JPEG"), (20, 12)),
    "palette.png": (saved(picture().quantize(16), "PNG"), (20, 12)),
    "transparent_palette.png": (transparent_palette(), (20, 12)),
    "rgba.png": (saved(picture().convert("RGBA"), "PNG"), (20, 12)),
    "grey.png": (saved(picture().convert("L"), "PNG"), (20, 12)),
    "one_bit.png": (saved(picture().convert("1"), "PNG"), (20, 12)),
    "rotated_by_exif.jpg": (rotated(), (20, 12)),
    "animated.gif": (animated(), (20, 12)),
    "really_png.jpg": (PNG, (20, 12)),
    "no_extension": (PNG, (20, 12)),
    "one_pixel.png": (saved(picture(1, 1), "PNG"), (1, 1)),
    "strip.png": (saved(picture(300, 1), "PNG"), (300, 1)),
    "webp.webp": (saved(picture(), "WEBP"), (20, 12)),
}


@pytest.mark.filterwarnings("error")
def test_odd_images_are_used_and_kept_as_they_are(make_settings, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    records = []
    for name, (content, _) in ODD_IMAGES.items():
        (images / name).write_bytes(content)
        records.append({"image": name, "conversations": TURNS})
    settings = make_settings(records, tmp_path, image_folder=images)
    preprocess(settings, log=io.StringIO())
    store = Store(settings.output_prefix)
    for number, (name, (content, size)) in enumerate(ODD_IMAGES.items()):
        sample = store.load(number)
        assert sample.image_sizes == (size,), name
        assert sample.images == (content,), name
        assert open_image(content, name).mode == "RGB"


def test_only_the_first_frame_and_no_rotation(tmp_path):
    first = picture(seed=0).quantize(256).convert("RGB")
    found = np.asarray(open_image(animated(), "animated"), dtype=int)
    assert np.abs(found - np.asarray(first, dtype=int)).mean() < 12
    assert open_image(rotated(), "rotated").size == (20, 12)


@pytest.mark.filterwarnings("error")
def test_a_hundred_megapixels_are_used_and_two_hundred_refused(make_settings, tmp_path):
    (tmp_path / "large.png").write_bytes(saved(Image.new("L", (10_000, 10_000), 200), "PNG"))
    (tmp_path / "larger.png").write_bytes(saved(Image.new("L", (20_000, 10_000), 200), "PNG"))
    records = [{"image": name, "conversations": TURNS} for name in ("large.png", "larger.png")]
    log = io.StringIO()
    settings = make_settings(records, tmp_path, image_folder=tmp_path, max_bad_records=1)
    assert preprocess(settings, log=log).samples == 1
    assert Store(settings.output_prefix).load(0).image_sizes == ((10_000, 10_000),)
    assert "larger.png: cannot read" in log.getvalue()


def test_a_text_of_a_megabyte(make_settings, tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Answer word " * 85_000}]
    settings = make_settings([{"conversations": turns}], tmp_path)
    preprocess(settings, log=io.StringIO())
    tokens, mask = Store(settings.output_prefix).sample(0)
    assert len(tokens) > 100_000 and mask[100_000] == 1


def test_text_that_looks_like_code_is_text(make_settings, tmp_path):
    """Nothing of the data is run or unpickled."""
    value = "!!python/object/apply:os.system ['touch ran']{{ ''.__class__ }}"
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": value}]
    settings = make_settings([{"conversations": turns}], tmp_path)
    preprocess(settings, log=io.StringIO())
    assert not Path("ran").exists()
    source = Path(__file__).parents[2] / "megatron_llava" / "data"
    runs = r"(import|from) (pickle|dill|joblib)|allow_pickle=True|yaml\.load\(|\b(eval|exec)\("
    assert [path for path in source.glob("*.py") if re.search(runs, path.read_text())] == []
