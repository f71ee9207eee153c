"""Records of parquet files, saved datasets and tar files are those of the JSON file."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from megatron_llava.data.image_source import FileSlice, ImageBytes, read_image
from megatron_llava.data.mixture_file import open_records
from megatron_llava.data.preprocess import preprocess
from megatron_llava.data.records import parse_record
from megatron_llava.data.sources import open_source


def with_bytes(record: dict, folder: Path) -> dict:
    """A row as Hugging Face datasets stores it: its images are structs of bytes and path."""
    names = record.get("image", [])
    names = [names] if isinstance(names, str) else names
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    return {"id": record["id"], "images": images, "conversations": record["conversations"]}


@pytest.fixture(scope="module")
def table(records, image_folder) -> pa.Table:
    return pa.Table.from_pylist([with_bytes(record, image_folder) for record in records])


def write_parquet(table: pa.Table, folder: Path, parts: int = 1, split: str = "train") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(table), parts + 1).astype(int).tolist()
    for number in range(parts):
        begin, end = bounds[number : number + 2]
        name = f"{split}-{number:05d}-of-{parts:05d}.parquet"
        rows = table.slice(begin, end - begin)
        pa.parquet.write_table(rows, folder / name, row_group_size=7)


def save_to_disk(table: pa.Table, folder: Path, **state) -> None:
    """The files that datasets' save_to_disk writes."""
    folder.mkdir()
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    content = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(content | state))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_tar(records: list[dict], image_folder: Path, path: Path, named: bool = True) -> None:
    with tarfile.open(path, "w") as archive:
        for number, record in enumerate(records):
            names = record.get("image", [])
            names = [names] if isinstance(names, str) else names
            content = dict(record) if named else {k: v for k, v in record.items() if k != "image"}
            if named and names:
                content["image"] = [f"{number:06d}.{i}.png" for i in range(len(names))]
            # Images before the record, as many writers sort.
            for index, name in enumerate(names):
                image = (image_folder / name).read_bytes()
                add(archive, f"part/{number:06d}.{index}.png", image)
            add(archive, f"part/{number:06d}.json", json.dumps(content).encode())


def bytes_of(prefix: Path) -> dict[str, bytes]:
    suffixes = ("tokens.bin", "mask.bin", "images.bin", "sizes.bin")
    return {name: Path(f"{prefix}_{name}").read_bytes() for name in suffixes}


@pytest.mark.parametrize("kind", ["parquet", "saved", "tar", "tar_unnamed", "pattern"])
def test_a_store_is_that_of_the_json_file(
    kind, table, records, image_folder, make_settings, store_prefix, tmp_path
):
    source = tmp_path / kind
    if kind == "parquet":
        write_parquet(table, source / "data", parts=3)
    elif kind == "pattern":
        write_parquet(table, source / "subset", parts=2)
        write_parquet(table, source / "subset", parts=2, split="test")
        source = Path(f"{source}/**/train-*.parquet")
    elif kind == "saved":
        save_to_disk(table, source)
    else:
        source = tmp_path / "shard.tar"
        write_tar(records, image_folder, source, named=kind == "tar")
    settings = make_settings(
        records, tmp_path, input=source, image_folder=None, output_prefix=tmp_path / "s", workers=2
    )
    summary = preprocess(settings)
    assert summary.samples == len(records)
    assert bytes_of(tmp_path / "s") == bytes_of(store_prefix)


def test_shards_of_parquet_read_their_own_rows_only(table, tmp_path):
    write_parquet(table, tmp_path / "data", parts=3)
    mixture = open_records(tmp_path / "data")
    everything = [raw["id"] for _, raw in mixture]
    assert everything == [f"r{i}" for i in range(40)]
    bounds = [0, 5, 5, 23, 40]
    shares = [list(mixture.between(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert [raw["id"] for share in shares for _, raw in share] == everything
    assert shares[2][-1][0].endswith("train-00001-of-00003.parquet: row 9 (id=r22)")


def test_a_mixture_over_shards_chooses_from_all_of_them(table, tmp_path):
    write_parquet(table, tmp_path / "data", parts=3)
    entry = f"{{json_path: {tmp_path / 'data'}, sampling_strategy: 'end:15', weight: 2}}"
    (tmp_path / "mix.yaml").write_text(f"datasets: [{entry}]")
    ids = [raw["id"] for _, raw in open_records(tmp_path / "mix.yaml")]
    assert ids == [f"r{i}" for i in range(25, 40)] * 2


def test_a_caption_beside_its_images(image_folder, records, tmp_path):
    image = (image_folder / records[0]["image"]).read_bytes()
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        add(archive, "7.jpg", image)
        add(archive, "7.txt", b" two lines\nof caption ")
        add(archive, "8.cls", b"3")
        add(archive, "8.jpg", image)
    (first, raw), (second, bad) = open_records(tmp_path / "c.tar")
    record = parse_record(raw, first)
    assert [turn.text for turn in record.turns] == ["<image>", "two lines\nof caption"]
    assert read_image(record.images[0], None, first) == (image, f"{tmp_path}/c.tar: 7.jpg")
    with pytest.raises(ValueError, match=r"c\.tar: sample 8: has neither a \.json nor"):
        parse_record(bad, second)


def test_messages_and_images_of_chat_formats():
    raw = {
        "messages": [
            {"role": "user", "content": "<image> hi"},
            {"role": "assistant", "content": "hello"},
        ],
        "images": [{"bytes": b"png", "path": None}],
    }
    record = parse_record(raw, "here")
    assert record.images == (ImageBytes(b"png", "image 0 of the record"),)
    assert [turn.role for turn in record.turns] == ["human", "gpt"]
    with pytest.raises(ValueError, match="here: has both 'image' and 'images'"):
        parse_record(raw | {"image": "a.png"}, "here")


def test_an_image_named_twice_in_a_sample(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "a/1.0.png", b"x")
        add(archive, "b/1.0.png", b"y")
        add(archive, "b/1.json", json.dumps({"image": "absent.png", "conversations": []}).encode())
    records = list(open_records(tmp_path / "t.tar"))
    assert [source for source, _ in records] == [
        f"{tmp_path}/t.tar: sample a/1",
        f"{tmp_path}/t.tar: sample b/1",
    ]
    with pytest.raises(ValueError, match="0 images of the sample are called absent.png"):
        parse_record(records[1][1], "here")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
@pytest.mark.parametrize("relative", [False, True])
def test_data_does_not_choose_files_outside_the_image_folder(tmp_path, monkeypatch, name, relative):
    (tmp_path / "secret.png").write_bytes(b"x")
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder = Path() if relative else folder
    with pytest.raises(ValueError, match=f"here: image {name} is not inside --image-folder"):
        read_image(name, folder, "here")
    (folder / "b").mkdir()
    (folder / "a.png").write_bytes(b"a")
    assert read_image("b/../a.png", folder, "here")[0] == b"a"
    assert read_image(str(folder.absolute() / "a.png"), folder, "here")[0] == b"a"


def test_images_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="here: names the image a.png; give --image-folder"):
        read_image("a.png", None, "here")
    with pytest.raises(ValueError, match="here: cannot read image .*null"):
        read_image("a\0.png", tmp_path, "here")
    (tmp_path / "t.tar").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"here: .*t\.tar: truncated in 1\.png"):
        read_image(FileSlice(tmp_path / "t.tar", 2, 9, "1.png"), None, "here")


def test_refused_sources(table, tmp_path):
    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(open_records(tmp_path / name))

    refused("absent.parquet", "no such file")
    refused("absent-*.tar", "no such file")
    refused("data.csv", "expected a folder, a pattern or one of .json")
    (tmp_path / "empty").mkdir()
    refused("empty", "neither parquet files nor a saved dataset")
    write_parquet(table, tmp_path / "two")
    write_parquet(table, tmp_path / "two", split="test")
    refused("two", r"holds the splits test, train: .*/train-\*\.parquet'")
    whole = (tmp_path / "two" / "test-00000-of-00001.parquet").read_bytes()
    (tmp_path / "old").mkdir()
    for split in ("train", "validation"):
        name = f"{split}-00000-of-00001-c3e41.parquet"
        (tmp_path / "old" / name).write_bytes(whole)
    refused("old", "holds the splits train, validation: ")
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused("cut.parquet", "damaged or of another format")
    middle = bytearray(whole)
    middle[200:2000] = bytes(1800)
    (tmp_path / "middle.parquet").write_bytes(middle)
    refused("middle.parquet", "damaged or of another format")
    pa.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    refused("text.parquet", r"no column 'conversations' .*only \['text'\]")
    pa.parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    refused("none.parquet", "holds no record")
    save_to_disk(table, tmp_path / "shuffled", _indices_data_files=[{"filename": "indices.arrow"}])
    refused("shuffled", "flatten_indices")
    (tmp_path / "dict").mkdir()
    save_to_disk(table, tmp_path / "dict" / "train")
    refused("dict", r"give one of its splits: .*dict/train")
    refused("{3..1}.tar", "counts from 3 up to 1")


def test_refused_tar_files(image_folder, records, tmp_path):
    path = tmp_path / "a.tar"
    write_tar(records, image_folder, path)
    content = path.read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=r"cut\.tar: (truncated|not an uncompressed tar file)"):
        open_source(tmp_path / "cut.tar")
    (tmp_path / "z.tar").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"z\.tar: not an uncompressed tar file.*unpack"):
        open_source(tmp_path / "z.tar")


def test_ranges_in_braces():
    from megatron_llava.data.mixture import expand_braces

    assert expand_braces("{08..10}.tar") == ["08.tar", "09.tar", "10.tar"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
