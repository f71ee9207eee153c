import json

import pytest

from megatron_llava.data.records import RecordFile, parse_record

TURNS = [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "hello"}]


def parsed(path):
    return [parse_record(raw, source) for source, raw in RecordFile(path)]


def test_json_list(tmp_path):
    path = tmp_path / "a.json"
    items = [
        {"id": 7, "image": "x.png", "conversations": TURNS, "kind": "caption"},
        {"image": ["x.png", "y.png"], "conversations": TURNS},
        {"id": "t", "conversations": TURNS},
    ]
    path.write_text(json.dumps(items))
    assert len(RecordFile(path)) == 3
    first, second, third = parsed(path)
    assert (first.id, second.id, third.id) == ("7", "", "t")
    assert (first.images, third.images) == (("x.png",), ())
    assert second.images == ("x.png", "y.png")
    assert [turn.role for turn in first.turns] == ["human", "gpt"]
    assert first.source == f"{path}: record 0 (id=7)"
    assert second.source == f"{path}: record 1"


def test_json_lines_name_lines_and_skip_blank_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"conversations": TURNS})
    path.write_text(f"{line}\n\n{line}")
    assert len(RecordFile(path)) == 2
    assert [record.source for record in parsed(path)] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "here: no 'conversations', expected a list of at least one turn"),
        ({"conversations": []}, "here: no 'conversations', expected a list of at least one turn"),
        ({"conversations": "hi"}, "here: conversations is str, not a list"),
        ({"conversations": [{"from": "tool", "value": ""}]}, "here: turn 1 is from 'tool'"),
        ({"conversations": TURNS, "image": 3}, "here: 'image' must be a path or a list of paths"),
        ({"conversations": TURNS, "image": [""]}, "here: 'image' must be a path or a list"),
        (["x"], "here: expected an object, found a list"),
        (b'{"conversations": [}', "here: not valid JSON: Expecting value"),
        (b"\xff", "here: not valid UTF-8 at byte 0"),
    ],
)
def test_bad_records(raw, message):
    with pytest.raises(ValueError) as error:
        parse_record(raw, "here")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[\n{"id": 1},\n}', ":3: not valid JSON: Expecting value"),
        ("a.json", '{"id": 1}', ": expected a JSON list of records, found an object"),
        ("a.json", "[]", ": holds no record"),
        ("a.jsonl", "\n\n", ": holds no record"),
        ("a.csv", "", ": expected a .json or .jsonl file"),
        ("a.json", None, ": no such file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as error:
        RecordFile(path)
    assert str(error.value) == f"{path}{message}"
