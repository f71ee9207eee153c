import json
import pickle

import numpy as np
import pytest

from megatron_llava.data.store import Store
from megatron_llava.data.store_files import manifest_file, piece_files
from megatron_llava.data.store_writer import StoreWriter
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

SAMPLES = [
    # tokens, mask, images, sizes
    ([1, IMAGE_TOKEN_INDEX, 2, 3], [0, 0, 0, 1], [b"abc"], [(4, 5)]),
    ([4, 5], [0, 0], [], []),
    ([IMAGE_TOKEN_INDEX, 6, IMAGE_TOKEN_INDEX], [0, 1, 0], [b"d", b"efgh"], [(6, 7), (8, 9)]),
]


def write(prefix, samples=SAMPLES, sources=("",) * 3, **options):
    with StoreWriter(
        prefix, tokenizer_fingerprint="f00d", conversation_template="qwen_1_5", **options
    ) as writer:
        for (tokens, mask, images, sizes), source in zip(samples, sources, strict=False):
            ids, label_mask = np.array(tokens, np.int32), np.array(mask, np.uint8)
            writer.add(ids, label_mask, images, sizes, source)
        return writer.finish()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    manifest = write(tmp_path / "s")
    assert manifest["counts"] == {
        "samples": 3,
        "videos": 0,
        "images": 3,
        "tokens": 6,
        "supervised_tokens": 2,
        "image_bytes": 8,
    }
    store = pickle.loads(pickle.dumps(Store(tmp_path / "s")))
    assert len(store) == 3
    for index, (tokens, mask, images, sizes) in enumerate(SAMPLES):
        ids, label_mask = store.sample(index)
        assert (ids.dtype, label_mask.dtype) == (np.int32, np.uint8)
        assert (ids.tolist(), label_mask.tolist()) == (tokens, mask)
        assert store.images(index) == images
        loaded = store.load(index)
        assert loaded.images == tuple(images) and loaded.image_sizes == tuple(sizes)
        assert store.load(index, with_images=False).images is None
    assert store.text_lengths.tolist() == [3, 2, 1] and store.text_lengths.dtype == np.int64
    assert store.supervised_counts.tolist() == [1, 0, 1]
    assert store.image_offsets.tolist() == [0, 1, 1, 3]
    assert store.image_sizes.tolist() == [[4, 5], [6, 7], [8, 9]]
    store.verify_checksums()


def test_sources_do_not_make_another_store(tmp_path):
    sources = ["data.json: record 7", "", "caf\u00e9/\udcff.jsonl:3"]
    here, elsewhere = tmp_path / "s", tmp_path / "elsewhere" / "t"
    write(here, sources=sources, provenance={"input": ["data.json: 3 of 9 records"]})
    write(elsewhere)
    store, other = Store(here), Store(elsewhere)
    assert [store.record_source(index) for index in range(3)] == sources
    assert store.load(0).source == f"store {here}: sample 0 (data.json: record 7)"
    assert other.load(0).source == f"store {elsewhere}: sample 0"
    assert store.manifest["provenance"] == {"input": ["data.json: 3 of 9 records"]}
    assert store.fingerprint == other.fingerprint
    write(elsewhere, SAMPLES[1:], overwrite=True)
    assert store.fingerprint != Store(elsewhere).fingerprint


def test_stores_without_sources_are_read(tmp_path):
    manifest = write(tmp_path / "s")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"s_sources{suffix}").unlink()
        del manifest["files"][f"s_sources{suffix}"]
    manifest_file(tmp_path / "s").write_text(json.dumps({**manifest, "format_version": 2}))
    store = Store(tmp_path / "s")
    assert len(store) == 3 and store.record_source(0) == ""
    assert store.load(2).source == f"store {tmp_path}/s: sample 2"
    store.verify_checksums()


def test_arrays_outlive_the_store(tmp_path):
    write(tmp_path / "s")
    store = Store(tmp_path / "s")
    tokens, offsets, sizes = store.sample(0)[0], store.image_offsets, store.image_sizes
    del store
    assert tokens[0] == 1 and offsets[-1] == 3 and sizes[2, 1] == 9


def test_store_without_images(tmp_path):
    write(tmp_path / "s", SAMPLES[1:2])
    store = Store(tmp_path / "s")
    assert store.images(0) == [] and store.image_sizes.shape == (0, 2)
    assert store.image_offsets.tolist() == [0, 0]


def test_same_content_has_the_same_fingerprint(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder / "s")
    write(tmp_path / "c" / "s", SAMPLES[:2])
    a, b, c = (Store(tmp_path / folder / "s").fingerprint for folder in "abc")
    assert a == b != c


def test_interrupted_writer_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        StoreWriter(tmp_path / "s", tokenizer_fingerprint="", conversation_template="") as writer,
    ):
        writer.add(np.array([1], np.int32), np.array([1], np.uint8), [], [])
        assert [name.startswith("s.partial-") for name in names(tmp_path)] == [True]
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_empty_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="s: no sample to write"):
        write(tmp_path / "s", [])
    assert names(tmp_path) == []


def test_existing_store_needs_overwrite(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(ValueError, match=r"s\.json exists: .* or give --overwrite"):
        write(tmp_path / "s")
    write(tmp_path / "s", SAMPLES[:1], overwrite=True)
    assert len(Store(tmp_path / "s")) == 1
    assert len(names(tmp_path)) == 11


def test_failed_overwrite_keeps_the_old_store(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(ValueError):
        write(tmp_path / "s", [], overwrite=True)
    Store(tmp_path / "s").verify_checksums()


def test_missing_manifest(tmp_path):
    write(tmp_path / "s")
    manifest_file(tmp_path / "s").unlink()
    with pytest.raises(ValueError, match=r"s\.json: no such store, make it with"):
        Store(tmp_path / "s")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_manifest_that_is_none(tmp_path, content):
    write(tmp_path / "s")
    manifest_file(tmp_path / "s").write_text(content)
    with pytest.raises(ValueError, match=r"s\.json: not the manifest of a store"):
        Store(tmp_path / "s")


def test_other_version(tmp_path):
    manifest = write(tmp_path / "s")
    manifest["format_version"] = 99
    manifest_file(tmp_path / "s").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="store format 99, this version reads 1"):
        Store(tmp_path / "s")


@pytest.mark.parametrize("number", range(8))
def test_truncated_or_missing_file(tmp_path, number):
    write(tmp_path / "s")
    path = piece_files(tmp_path / "s")[number]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    message = f"{path.name} has {size - 1} bytes and should have {size}"
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "s")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        Store(tmp_path / "s")


def test_a_renamed_store_is_told_its_name(tmp_path):
    """Shards, plans and messages know a store by its name."""
    write(tmp_path / "s")
    for path in [manifest_file(tmp_path / "s"), *piece_files(tmp_path / "s")]:
        path.rename(tmp_path / path.name.replace("s", "t", 1))
    with pytest.raises(ValueError, match=r"lists s_images\.bin, not t_.*: was it renamed"):
        Store(tmp_path / "t")


def replace_mask_index(tmp_path, samples):
    """Put the mask index of a store of other samples, equal in size, into the store 's'."""
    manifest = write(tmp_path / "s")
    write(tmp_path / "t", samples)
    index = tmp_path / "s_mask.idx"
    index.write_bytes((tmp_path / "t_mask.idx").read_bytes())
    assert index.stat().st_size == manifest["files"]["s_mask.idx"]["bytes"]


def test_data_that_contradicts_its_index(tmp_path):
    replace_mask_index(tmp_path, [([1, 2], [0, 0], [], [])] * 3)
    with pytest.raises(ValueError) as error:
        Store(tmp_path / "s")
    message = str(error.value)
    assert "s_mask.idx describes 6 bytes of uint8" in message and "\n" not in message
    assert "s_mask.bin has 9 of uint8" in message


def test_index_with_other_borders(tmp_path):
    replace_mask_index(tmp_path, [([1, 2, 3], [0, 0, 1], [], [])] * 3)
    with pytest.raises(ValueError, match="do not describe the same 3 samples and 3 images"):
        Store(tmp_path / "s")


def test_changed_byte_is_found_by_its_checksum(tmp_path):
    write(tmp_path / "s")
    path = tmp_path / "s_images.bin"
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match="s_images.bin has changed since it was written"):
        Store(tmp_path / "s").verify_checksums()


def test_other_tokenizer(tmp_path):
    write(tmp_path / "s")
    store = Store(tmp_path / "s")
    store.check_tokenizer("f00d")
    with pytest.raises(ValueError, match="written with tokenizer f00d, this one is beef"):
        store.check_tokenizer("beef")


def test_stores_of_the_format_before_videos_are_read(tmp_path):
    write(tmp_path / "s")
    path = tmp_path / "s.json"
    manifest = json.loads(path.read_text())
    del manifest["counts"]["videos"]
    path.write_text(json.dumps(manifest | {"format_version": 1}))
    assert len(Store(tmp_path / "s")) == 3
