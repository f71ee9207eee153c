import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_llava.data.merged_store import merge_stores, open_store
from megatron_llava.data.preprocess import preprocess
from megatron_llava.data.store import Store
from megatron_llava.data.store_files import manifest_file, piece_files
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.conversation import encode_conversation, turns_from_record
from megatron_llava.text.known_templates import get_template
from megatron_llava.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]


def run(settings):
    """The summary and what was printed."""
    log = io.StringIO()
    return preprocess(settings, log=log), log.getvalue()


def refused(settings):
    """The one-line message of a run that must fail and leave nothing."""
    with pytest.raises(ValueError) as error:
        run(settings)
    folder = settings.output_prefix.parent
    assert [path.name for path in folder.iterdir() if path.name.startswith("store")] == []
    assert "\n" not in str(error.value)
    return str(error.value)


def tool(name, settings_or_arguments):
    arguments = settings_or_arguments
    if not isinstance(arguments, list):
        pairs = vars(arguments).items()
        flags = [
            (f"--{key.replace('_', '-')}", "/".join(map(str, value)) if key == "shard" else value)
            for key, value in pairs
            if value is not None
        ]
        arguments = [
            part
            for flag, value in flags
            for part in ([flag] * value if isinstance(value, bool) else [flag, str(value)])
        ]
    return [sys.executable, str(ROOT / "tools" / name), *arguments]


@pytest.mark.parametrize("count", [2, 3])
def test_merged_shards_are_the_whole(make_settings, records, store, tmp_path, count):
    shards = [tmp_path / f"shard{number}" for number in range(count)]
    for number, prefix in enumerate(shards):
        run(make_settings(records, tmp_path, output_prefix=prefix, shard=(number, count)))
    assert merge_stores(tmp_path / "merged", shards, overwrite=False) == len(store)
    merged = open_store(tmp_path / "merged")
    for index in range(len(store)):
        found, expected = merged.load(index), store.load(index)
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        np.testing.assert_array_equal(found.label_mask, expected.label_mask)
        assert found.images == expected.images


def test_shards_that_are_none(make_settings, records, tmp_path):
    def message(*shard):
        return refused(make_settings(records, tmp_path, shard=shard))

    assert message(2, 2) == "--shard 2/2: shards are 0/N to N-1/N"
    assert "none of the" in message(0, 10 * len(records))


def test_labels_of_llava_are_in_the_manifest(make_settings, records, store, tmp_path):
    prefix = tmp_path / "store"
    run(make_settings(records, tmp_path, label_compat="llava"))
    manifest = json.loads(manifest_file(prefix).read_text())
    assert manifest["conversation_template"] == "qwen_1_5 with llava's labels"
    assert Store(prefix).supervised_counts.sum() > store.supervised_counts.sum()


def test_content(records, image_folder, tokenizer_folder, store, store_prefix):
    assert len(store) == len(records)
    tokenizer, template = load_tokenizer(tokenizer_folder), get_template("qwen_1_5")
    for index, item in enumerate(records):
        names = item.get("image", [])
        names = [names] if isinstance(names, str) else names
        turns = turns_from_record(item["conversations"], "")
        expected = encode_conversation(turns, len(names), tokenizer, template, "")
        sample = store.load(index)
        np.testing.assert_array_equal(sample.token_ids, expected.token_ids)
        np.testing.assert_array_equal(sample.label_mask, expected.label_mask)
        assert sample.images == tuple((image_folder / name).read_bytes() for name in names)
        assert list(sample.image_sizes) == [Image.open(image_folder / n).size for n in names]
        assert np.count_nonzero(sample.token_ids == IMAGE_TOKEN_INDEX) == len(names)
    manifest = json.loads(manifest_file(store_prefix).read_text())
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint()
    assert manifest["conversation_template"] == "qwen_1_5"
    store.verify_checksums()


@pytest.mark.proves("C13")
def test_workers_do_not_change_the_output(records, make_settings, store_prefix, tmp_path):
    given = store_prefix.parent / "data.json"
    settings = make_settings([], tmp_path, input=given, workers=3)
    summary, _ = run(settings)
    assert summary.samples == len(records) and summary.bad_records == 0
    for files in (lambda prefix: [manifest_file(prefix)], piece_files):
        pairs = zip(files(settings.output_prefix), files(store_prefix), strict=True)
        for found, expected in pairs:
            assert found.read_bytes() == expected.read_bytes()


def test_where_samples_come_from(records, make_settings, store, tmp_path):
    data = tmp_path / "data.json"
    assert store.record_source(3) == f"{store.prefix.parent}/data.json: record 3 (id=r3)"
    run(make_settings(records, tmp_path, min_text_length=1, seed=5))
    made = Store(tmp_path / "store")
    assert made.manifest["provenance"]["input"] == [f"{data}: 40 of 40 records"]
    flags = made.manifest["provenance"]["flags"]
    assert (flags["input"], flags["min_text_length"], flags["seed"]) == (str(data), 1, 5)
    assert "workers" not in flags and "shard" not in flags
    # The same samples made of another file, with other flags.
    assert made.fingerprint == store.fingerprint


@pytest.mark.parametrize("workers", [1, 2])
def test_long_conversations_are_split(records, image_folder, make_settings, tmp_path, workers):
    settings = make_settings(records, tmp_path, split_turns=1, workers=workers)
    summary, _ = run(settings)
    questions = [len(record["conversations"]) // 2 for record in records]
    assert summary.samples == sum(questions) > len(records)
    assert summary.split_records == sum(count > 1 for count in questions)
    assert f", {summary.split_records} records split, " in str(summary)
    store, number = Store(settings.output_prefix), 0
    for index, record in enumerate(records):
        names = record.get("image", [])
        names = [names] if isinstance(names, str) else names
        for part in range(questions[index]):
            sample = store.load(number)
            number += 1
            # All images are those of the first question.
            assert sample.images == tuple((image_folder / name).read_bytes() for name in names)
            turns = f", turns {2 * part + 1} to {2 * part + 2}" if questions[index] > 1 else ""
            assert store.record_source(number - 1).endswith(f"(id=r{index}){turns}")
    negative = replace(settings, split_turns=-1, output_prefix=tmp_path / "none" / "store")
    (tmp_path / "none").mkdir()
    assert refused(negative).startswith("--split-turns -1")


def test_half_a_surrogate_pair_is_one_bad_record(records, make_settings, tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "so \ud83d it is"}]
    settings = make_settings([records[1], {"conversations": turns}, records[1]], tmp_path)
    assert refused(settings) == (
        f"{tmp_path}/data.json: record 1: not valid Unicode: half of a surrogate pair, '\\ud83d', "
        "in 'so \\ud83d it is<|im' (--max-bad-records N skips up to N such records)"
    )
    summary, _ = run(replace(settings, max_bad_records=1))
    assert (summary.samples, summary.bad_records) == (2, 1)


def spoil(records, image_folder):
    """record number -> (spoiled record, what its message says)."""
    data = (image_folder / records[0]["image"]).read_bytes()
    (image_folder / "short.png").write_bytes(data[: len(data) // 2])
    (image_folder / "text.png").write_bytes(b"no image")
    turns = records[0]["conversations"]
    answer = turns[-1]
    return {
        "missing": ({**records[0], "image": "gone.png"}, "cannot read image {}/gone.png: No such"),
        "truncated": ({**records[0], "image": "short.png"}, "image {}/short.png: cannot read an"),
        "no image": ({**records[0], "image": "text.png"}, "image {}/text.png: cannot read an"),
        "directory": ({**records[0], "image": "."}, "cannot read image {}: Is a directory"),
        "no turns": ({"id": "r0", "conversations": []}, "no 'conversations', expected a list"),
        "surplus image": ({**records[0], "image": ["0_0.png"] * 2}, "1 <image> placeholders"),
        "no placeholder": (
            {**records[0], "conversations": [{"from": "human", "value": "hi"}, answer]},
            "0 <image> placeholders in the conversation, but 1 images",
        ),
        "image not given": ({"id": "r0", "conversations": turns}, "but 0 images"),
        "answer only": ({"id": "r0", "conversations": [answer]}, "has no human turn"),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records_name_file_and_record(records, make_settings, image_folder, tmp_path, workers):
    for item, expected in spoil(records, image_folder).values():
        settings = make_settings([records[1], item], tmp_path, workers=workers)
        message = refused(settings)
        assert message.startswith(f"{settings.input}: record 1 (id=r0): "), message
        assert expected.format(image_folder) in message
        assert message.endswith("(--max-bad-records N skips up to N such records)")
        if workers == 2:
            break  # one is enough to see that a message crosses the processes


def test_bad_line_of_json_lines(records, make_settings, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{json.dumps(records[0])}\n{{"id": 1,\n')
    message = refused(make_settings([], tmp_path, input=path))
    assert message.startswith(f"{path}:2: not valid JSON: ")


def test_bad_records_up_to_a_limit(records, make_settings, image_folder, tmp_path):
    bad = [item for item, _ in spoil(records, image_folder).values()]
    mixed = [records[0], *bad, records[1]]
    settings = make_settings(mixed, tmp_path, max_bad_records=len(bad))
    summary, printed = run(settings)
    assert (summary.samples, summary.bad_records) == (2, len(bad))
    assert str(summary).startswith("2 samples, 1 images, ")
    lines = printed.splitlines()
    assert len(lines) == len(bad)
    assert all(line.startswith(f"skipped: {settings.input}: record ") for line in lines)
    store = Store(settings.output_prefix)
    assert store.images(0) == [(image_folder / records[0]["image"]).read_bytes()]

    (tmp_path / "less").mkdir()
    settings = make_settings(mixed, tmp_path / "less", max_bad_records=3)
    assert refused(settings).endswith("; this is bad record 4, --max-bad-records is 3")


def test_bad_settings(records, make_settings, tokenizer_folder, tmp_path):
    def message(**changes):
        return refused(make_settings(records[:1], tmp_path, **changes))

    assert message(conversation_template="nope").startswith("--conversation-template nope: ")
    assert "<|eot_id|>" in message(conversation_template="llava_llama_3")
    assert message(workers=0) == "--workers 0: expected at least 1"
    assert message(max_bad_records=-1) == "--max-bad-records -1: expected at least 0"
    gone = tmp_path / "gone"
    assert message(image_folder=gone) == f"--image-folder {gone}: no such directory"
    assert message(input=gone / "a.json") == f"{gone / 'a.json'}: no such file"
    assert f"--tokenizer-model {gone}: " in message(tokenizer_model=str(gone))


def test_existing_output_is_refused_first(records, make_settings, tmp_path):
    settings = make_settings(records[:2], tmp_path)
    run(settings)
    before = Store(settings.output_prefix).fingerprint
    again = make_settings(records[:1], tmp_path, input=tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"store\.json exists: .*--overwrite"):
        run(again)
    assert Store(settings.output_prefix).fingerprint == before
    run(make_settings(records[:1], tmp_path, overwrite=True))
    assert len(Store(settings.output_prefix)) == 1


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_tool_leaves_nothing(make_settings, tmp_path, stop):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps({'conversations': turns})}\n" * 400_000)
    folder = tmp_path / "stores"
    folder.mkdir()
    process = subprocess.Popen(
        tool("preprocess_data.py", make_settings([], folder, input=path, workers=2)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in folder.glob("store.partial-*/store_tokens.bin")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # A terminal interrupts the whole group; kill reaches the parent alone.
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed.splitlines()[-1] == {2: "interrupted", 15: "terminated"}[stop]
    assert "Traceback" not in printed
    assert list(folder.glob("store*")) == []
    with pytest.raises(ProcessLookupError):  # no worker is left in its group
        os.killpg(process.pid, 0)


def test_tools(records, make_settings, tokenizer_folder, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)

    def call(name, arguments):
        monkeypatch.setattr(sys, "argv", tool(name, arguments)[1:])
        runpy.run_path(sys.argv[0], run_name="__main__")
        return capsys.readouterr().out

    settings = make_settings(records[:8], tmp_path)
    try:
        printed = call("preprocess_data.py", settings)
        assert printed.startswith(f"{settings.output_prefix}: 8 samples, ")
        with pytest.raises(SystemExit, match=r"^error: .* give --overwrite$"):
            call("preprocess_data.py", settings)
    finally:
        signal.signal(signal.SIGTERM, handler)
    arguments = ["--data-path", str(settings.output_prefix), "--tokenizer-model"]
    arguments.append(str(tokenizer_folder))
    printed = call("inspect_data.py", [*arguments, "--index", "2", "--verify-checksums"])
    assert "image 1: 16x16 pixels, 1 views, 730 visual tokens" in printed
    with pytest.raises(SystemExit, match="^error: store .* no sample 8, it has 8"):
        call("inspect_data.py", [*arguments, "--index", "8"])
