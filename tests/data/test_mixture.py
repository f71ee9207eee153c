import json

import numpy as np
import pytest
import yaml

from megatron_llava.data.mixture import chosen_counts, expand_braces, open_records


def write(folder, name, count):
    records = [{"id": f"{name}-{i}", "conversations": [{"from": "human"}]} for i in range(count)]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(records))
    return path


def write_lines(folder, name, count):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": f"{name}-{i}"}) + "\n" for i in range(count)))
    return path


def ids(records):
    found = []
    for _, raw in records:
        found.append((json.loads(raw) if isinstance(raw, bytes) else raw)["id"])
    assert len(found) == len(records)
    return found


def mixture(folder, *entries, seed=0):
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"datasets": list(entries)}))
    return open_records(path, seed)


def test_one_file_is_a_mixture_of_one(tmp_path):
    assert ids(open_records(write(tmp_path, "a", 3))) == ["a-0", "a-1", "a-2"]
    assert ids(open_records(write_lines(tmp_path, "b", 2))) == ["b-0", "b-1"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.json", ["a.json"]),
        ("/x/{a,b}.json", ["/x/a.json", "/x/b.json"]),
        ("{a,b}{1,2}.json", ["a1.json", "a2.json", "b1.json", "b2.json"]),
        ("{a}.json", ["a.json"]),
    ],
)
def test_braces(text, names):
    assert expand_braces(text) == names


def test_braces_in_the_input(tmp_path):
    write(tmp_path, "a", 2), write(tmp_path, "b", 1)
    assert ids(open_records(f"{tmp_path}/{{a,b}}.json")) == ["a-0", "a-1", "b-0"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", range(7)),
        ("first:2", [0, 1]),
        ("end:2", [5, 6]),
        ("first:10%", [0]),  # ceil(0.7)
        ("end:30%", [4, 5, 6]),  # ceil(2.1)
        ("first:100%", range(7)),
    ],
)
def test_strategies(strategy, expected):
    counts = chosen_counts(7, strategy, 0, "here")
    assert np.flatnonzero(counts).tolist() == list(expected) and counts.max() == 1


def test_random_strategies_come_from_the_seed(tmp_path):
    entry = {"json_path": str(write_lines(tmp_path, "a", 50)), "sampling_strategy": "random:20%"}
    first, again = ids(mixture(tmp_path, entry)), ids(mixture(tmp_path, entry))
    assert first == again and len(set(first)) == 10
    other = ids(mixture(tmp_path, entry, seed=1))
    assert len(other) == 10 and other != first
    # Records keep the order of their file.
    assert first == sorted(first, key=lambda name: int(name.split("-")[1]))


def test_weights_repeat_whole_and_in_part(tmp_path):
    path = str(write(tmp_path, "a", 10))
    found = ids(mixture(tmp_path, {"json_path": path, "weight": 2.5}))
    assert len(found) == 25 and found[:10] == found[10:20] == [f"a-{i}" for i in range(10)]
    assert len(set(found[20:])) == 5
    half = ids(mixture(tmp_path, {"json_path": path, "weight": 0.5}))
    assert len(half) == len(set(half)) == 5
    mixed = mixture(
        tmp_path,
        {"json_path": path, "sampling_strategy": "first:4", "weight": 2},
        {"json_path": str(write_lines(tmp_path, "b", 3))},
    )
    assert ids(mixed) == [f"a-{i}" for i in range(4)] * 2 + ["b-0", "b-1", "b-2"]
    assert mixed.describe() == [
        f"{tmp_path}/a.json: 8 of 10 records",
        f"{tmp_path}/b.jsonl: 3 of 3 records",
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"sampling_strategy": "some"}, "sampling_strategy 'some': expected all, first:N"),
        ({"sampling_strategy": "end:0"}, "takes 0 of 4 records"),
        ({"sampling_strategy": "first:5"}, "takes 5 of 4 records"),
        ({"sampling_strategy": "random:101%"}, "takes 5 of 4 records"),
        ({"weight": 0}, "weight 0: expected a number above 0"),
        ({"weight": "two"}, "weight 'two'"),
        ({"json_file": "x"}, "unknown key 'json_file'; known: json_path"),
        ({"json_path": 3}, "expected an object with a 'json_path'"),
        ({"json_path": "/absent.json"}, "/absent.json: no such file"),
    ],
)
def test_bad_entries_are_named(tmp_path, entry, words):
    good = {"json_path": str(write(tmp_path, "a", 4))}
    with pytest.raises(ValueError) as caught:
        mixture(tmp_path, good, {**good, **entry})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if "absent" not in words:
        assert str(caught.value).startswith(f"{tmp_path}/mixture.yaml: datasets[1]: ")


@pytest.mark.parametrize("text", ["datasets: []", "a: 1", "- x", "datasets: [", "\xff"])
def test_bad_files_are_named(tmp_path, text):
    path = tmp_path / "m.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        open_records(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="absent.yaml: No such file"):
        open_records(tmp_path / "absent.yaml")
