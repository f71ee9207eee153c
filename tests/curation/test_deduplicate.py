import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from skimage import data

from megatron_llava.curation.deduplicate import DeduplicateSettings, deduplicate
from megatron_llava.data.records import RecordFile, parse_record

PHOTOGRAPHS = {
    name: Image.fromarray(getattr(data, name)()).convert("RGB").resize((240, 200))
    for name in ("astronaut", "chelsea", "coffee", "camera")
}
CAPTION = "A photograph that shows one thing in the middle and a few more things behind it, {}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photographs, each as PNG, as two JPEGs, halved, and cropped by two pixels."""
    folder = tmp_path_factory.mktemp("images")
    for name, image in PHOTOGRAPHS.items():
        image.save(folder / f"{name}.png")
        image.save(folder / f"{name}-60.jpg", quality=60)
        image.save(folder / f"{name}-30.jpg", quality=30)
        image.resize((120, 100)).save(folder / f"{name}-half.png")
        image.crop((2, 2, 238, 198)).save(folder / f"{name}-crop.png")
    (folder / "cut.png").write_bytes((folder / "coffee.png").read_bytes()[:2000])
    return folder


def record(images, answer, question="What is shown in this picture?"):
    made = {
        "id": 0,
        "conversations": [
            {"from": "human", "value": "<image>\n" * len(images) + question},
            {"from": "gpt", "value": answer},
        ],
        "source": "photographs",
    }
    return {**made, "image": images} if images else made


@pytest.fixture
def run(tmp_path, folder):
    """Runs over records; the numbers of those kept, the report, and the summary."""

    def run(records, suffix=".jsonl", **changes):
        path = tmp_path / f"data{suffix}"
        if suffix == ".json":
            path.write_text(json.dumps(records))
        elif suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, records)))
        values = {"input": path, "image_folder": folder, "output": tmp_path / "kept.jsonl"}
        settings = DeduplicateSettings(**{**values, "overwrite": True, **changes})
        log = io.StringIO()
        summary = deduplicate(settings, log=log)
        lines = settings.output.read_text().splitlines()
        report = [json.loads(line) for line in settings.report_path.read_text().splitlines()]
        assert (len(lines), len(report)) == (summary.kept, summary.removed)
        assert not list(tmp_path.glob("*.partial"))
        return [json.loads(line)["id"] for line in lines], report, summary, log.getvalue()

    return run


def numbered(records):
    return [{**item, "id": number} for number, item in enumerate(records)]


def changed_photographs():
    names = ["{}.png", "{}-30.jpg", "{}-half.png", "{}-crop.png", "{}-60.jpg"]
    items = [
        record([name.format(photograph)], CAPTION.format(photograph))
        for name in names
        for photograph in PHOTOGRAPHS
    ]
    return numbered(items)


@pytest.mark.proves("C10")
@pytest.mark.parametrize("by", ["both", "image"])
def test_changed_photographs_are_found_and_others_stay(run, by):
    kept, report, summary, _ = run(changed_photographs(), by=by)
    assert kept == [0, 1, 2, 3]
    assert str(summary).startswith("4 records kept, 16 near duplicates removed, 0 bad records, ")
    for line in report:
        removed, earlier = (int(line[key].rsplit(":", 1)[1]) for key in ("removed", "duplicate_of"))
        assert earlier == (removed - 1) % 4 + 1
        assert len(line["image_distances"]) == 1 and line["image_distances"][0] <= 4
        assert line["text_similarity"] == (1.0 if by == "both" else None)


def test_what_has_to_be_near(run):
    items = numbered(
        [
            record(["coffee.png"], "a cup of coffee on a wooden table"),
            record(["coffee-60.jpg"], "who made this photograph, and when?"),
            record(["chelsea.png"], "a cup of coffee on a wooden table"),
            record([], "a cup of coffee on a wooden table"),
            record(["coffee-60.jpg"], "A cup of coffee on a  wooden table"),
            record([], "a cup of coffee on a wooden table"),
            record(["coffee.png", "chelsea.png"], "a cup of coffee on a wooden table"),
            record(["chelsea.png", "coffee.png"], "a cup of coffee on a wooden table"),
            record(["coffee-30.jpg", "chelsea-60.jpg"], "a cup of coffee on a wooden table"),
        ]
    )
    assert run(items)[0] == [0, 1, 2, 3, 6, 7]
    assert run(items, by="image")[0] == [0, 2, 3, 6, 7]
    assert run(items, by="text", image_folder=None)[0] == [0, 1]


def test_the_thresholds(run):
    answers = [f"w{n}" for n in range(12)]
    other = [*answers[:11], "dozen"]  # 9 of 11 runs of three are the same
    items = numbered([record(["coffee.png"], " ".join(words)) for words in (answers, other)])
    assert run(items, text_similarity=0.6)[0] == [0]
    assert run(items, text_similarity=1.0)[0] == [0, 1]
    items = numbered([record([f"coffee{end}"], "same") for end in (".png", "-crop.png")])
    distance = run(items)[1][0]["image_distances"][0]
    assert distance in (2, 4)
    assert run(items, image_hash_distance=distance - 1)[0] == [0, 1]


def test_chains_end_at_what_was_kept(run):
    """The third is near the second, which is gone, but not near the first: it stays."""
    words = [f"w{n}" for n in range(200)]
    texts = [words, words[30:], words[30:-30]]  # 0.85, 0.82, and 0.70 between the ends
    items = numbered([record([], " ".join(text)) for text in texts])
    assert run(items, text_similarity=0.76)[0] == [0, 2]
    assert run(items[1:], text_similarity=0.76)[0] == [1]


def test_workers_change_nothing(run, tmp_path):
    items = changed_photographs()
    items = [*items, *numbered([record([], CAPTION.format(n)) for n in range(30)])]
    outputs = []
    for workers in (1, 3):
        run(items, workers=workers)
        files = ("kept.jsonl", "kept.removed.jsonl")
        outputs.append([(tmp_path / name).read_bytes() for name in files])
    assert outputs[0] == outputs[1]


def test_kept_lines_are_the_lines_read(run, tmp_path):
    items = numbered([record(["coffee.png"], "naïve 猫 \ud800"), record(["camera.png"], "b")])
    assert run(items)[0] == [0, 1]
    assert (tmp_path / "kept.jsonl").read_bytes() == (tmp_path / "data.jsonl").read_bytes() + b"\n"
    assert run(items, suffix=".json")[0] == [0, 1]
    kept = list(RecordFile(tmp_path / "kept.jsonl"))
    assert [json.loads(line) for _, line in kept] == items
    assert [parse_record(line, "").id for _, line in kept] == ["0", "1"]


def test_mixtures_of_several_files(run, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(numbered([record(["coffee.png"], "one")])))
    lines = numbered([record(["coffee-60.jpg"], "one"), record(["camera.png"], "one")])
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("datasets: [{json_path: a.json}, {json_path: b.jsonl}]")
    kept, report, _, _ = run([], input=mixture, data_root=tmp_path)
    assert kept == [0, 1]
    assert report[0]["removed"] == f"{tmp_path / 'b.jsonl'}:1"
    assert report[0]["duplicate_of"] == f"{tmp_path / 'a.json'}: record 0 (id=0)"
    mixture.write_text("datasets: [{json_path: a.json, weight: 2}]")
    with pytest.raises(ValueError, match=r"takes records of .*a\.json 2 times; .* the weight in"):
        run([], input=mixture, data_root=tmp_path)


def test_videos_are_kept_unless_texts_are_compared(run):
    items = numbered([{**record([], "same"), "video": "a.mp4"}] * 2)
    kept, _, summary, _ = run(items)
    assert kept == [0, 1] and summary.unjudged == 2
    assert "2 records kept (2 with videos, not compared), 0 near" in str(summary)
    assert run(items, by="text")[0] == [0]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records(run, tmp_path, workers):
    good = record(["coffee.png"], "a")
    bad = [record(["cut.png"], "a"), record(["gone.png"], "a"), {"id": 0}]
    items = numbered([good, *bad, good])
    kept, _, summary, log = run(items, max_bad_records=3, workers=workers)
    assert kept == [0] and (summary.removed, summary.bad_records) == (1, 3)
    lines = log.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        f"{tmp_path}/data.jsonl:{n}" for n in (2, 3, 4)
    ]
    assert "cut.png: cannot read an image" in lines[0] and "gone.png: No such" in lines[1]
    before = (tmp_path / "kept.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"data\.jsonl:4: .*; this is bad record 3, --max-bad-"):
        run(items, max_bad_records=2, workers=workers)
    assert (tmp_path / "kept.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_other_kinds_of_input_are_refused(run, tmp_path):
    table = pa.table({"conversations": [[{"from": "human", "value": "hi"}]]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.parquet", "*.parquet"):
        with pytest.raises(ValueError, match=r"--input: .*parquet is no \.json or \.jsonl file"):
            run([], input=tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_hash_distance": 14}, "--image-hash-distance 14: expected 0 to 12 bits of 64"),
        ({"image_hash_distance": -1}, "--image-hash-distance -1"),
        ({"text_similarity": 1.01}, "--text-similarity 1.01: expected 0.3 to 1"),
        ({"text_similarity": float("nan")}, "--text-similarity nan"),
        ({"workers": 0}, "--workers 0: expected at least 1"),
        ({"max_bad_records": -1}, "--max-bad-records -1: expected at least 0"),
        ({"image_folder": "gone"}, "--image-folder .*gone: no such directory"),
        ({"output": "kept.json"}, r"--output .*kept.json: expected a name that ends in \.jsonl"),
        ({"output": "gone/a.jsonl"}, "--output .*gone/a.jsonl: no such directory .*gone"),
        ({"report": "kept.jsonl"}, "--report .*kept.jsonl: is the --output too"),
        ({"output": "data.jsonl", "overwrite": False}, "--output .*data.jsonl exists: .*--overw"),
        ({"report": "data.jsonl", "overwrite": False}, "--report .*data.jsonl exists: .*--overw"),
    ],
)
def test_settings_that_cannot_be_used(run, tmp_path, changes, message):
    paths = ("image_folder", "output", "report")
    changes = {key: tmp_path / value if key in paths else value for key, value in changes.items()}
    with pytest.raises(ValueError, match=message) as error:
        run(numbered([record(["coffee.png"], "a")]), **changes)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_library_that_is_not_installed_is_named(run, monkeypatch):
    items = numbered([record(["coffee.png"], "a")])
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ValueError, match=r"need imagehash: pip install 'megatron-llava\[curat"):
        run(items, max_bad_records=9)
    assert run(items, by="text")[0] == [0]


def test_an_image_of_another_mode_or_one_colour(run, folder):
    """Images of one colour have one hash: what the two texts say then decides."""
    Image.fromarray(np.full((9, 9), 7, np.uint8)).convert("P").save(folder / "dark.png")
    Image.new("RGBA", (50, 20), (255, 255, 0, 90)).save(folder / "light.png")
    items = numbered([record(["dark.png"], "dark grey"), record(["light.png"], "yellow")])
    assert run(items)[0] == [0, 1]
    assert run(items, by="image")[0] == [0]
