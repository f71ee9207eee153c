import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.data.mixture import expand_braces
from megatron_llava.data.mixture_check import check_mixture
from megatron_llava.data.mixture_entries import Entry
from megatron_llava.data.mixture_file import open_records
from megatron_llava.data.sampling import chosen_counts, weighted_counts


def write(folder, name, count):
    records = [{"id": f"{name}-{i}", "conversations": [{"from": name}]} for i in range(count)]
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


@pytest.mark.proves("C7")
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


@pytest.mark.proves("C7", "C9")
def test_random_strategies_come_from_the_seed(tmp_path):
    entry = {"json_path": str(write_lines(tmp_path, "a", 50)), "sampling_strategy": "random:20%"}
    first, again = ids(mixture(tmp_path, entry)), ids(mixture(tmp_path, entry))
    assert first == again and len(set(first)) == 10
    other = ids(mixture(tmp_path, entry, seed=1))
    assert len(other) == 10 and other != first
    # Records keep the order of their file.
    assert first == sorted(first, key=lambda name: int(name.split("-")[1]))


@pytest.mark.proves("C7", "C8")
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
        ({"weight": float("inf")}, "weight inf: expected a number above 0 and below"),
        ({"weight": float("nan")}, "weight nan"),
        ({"json_file": "x"}, "unknown key 'json_file'; known: json_path"),
        ({"json_path": 3}, "expected an object with a 'json_path'"),
        ({"json_path": "/absent.json"}, "1 of 2 are no such file or folder below"),
    ],
)
def test_bad_entries_are_named(tmp_path, entry, words):
    good = {"json_path": str(write(tmp_path, "a", 4))}
    with pytest.raises(ValueError) as caught:
        mixture(tmp_path, good, {**good, **entry})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if "no such file" not in words:
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


def test_everything_that_is_missing_is_listed(tmp_path):
    write(tmp_path, "a", 2)
    (tmp_path / "m.yaml").write_text("datasets: [{json_path: 'x.json'}, {json_path: '{a,y}.json'}]")
    with pytest.raises(ValueError) as caught:
        open_records(tmp_path / "m.yaml", data_root=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/m.yaml: 2 of 3 are no such file or folder below --data-root {tmp_path}: "
        "x.json, y.json"
    )


def test_a_data_root_does_not_change_what_is_drawn(tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name, "a", 40)
        (tmp_path / "m.yaml").write_text(
            "datasets: [{json_path: a.jsonl, sampling_strategy: 'random:9'}]"
        )
        found.append(ids(open_records(tmp_path / "m.yaml", data_root=tmp_path / name)))
    assert found[0] == found[1] and len(found[0]) == 9


def test_expected_records(tmp_path):
    path = str(write(tmp_path, "a", 4))
    assert len(mixture(tmp_path, {"json_path": path, "records": 4})) == 4
    with pytest.raises(
        ValueError, match=r"datasets\[0\]: .*a\.json holds 4 records, 'records' says 5"
    ):
        mixture(tmp_path, {"json_path": path, "records": 5})
    for key in ("records", "about"):
        for value in ("four", 0, True, 4.0):
            with pytest.raises(ValueError, match=f"{key} {value!r}: expected a whole number above"):
                mixture(tmp_path, {"json_path": path, key: value})


def test_rounded_records(tmp_path):
    path = str(write_lines(tmp_path, "a", 95))
    for about in (91, 95, 100):  # 4.4 % more, exactly, 5 % fewer
        assert len(mixture(tmp_path, {"json_path": path, "about": about})) == 95
    for about in (90, 101):
        with pytest.raises(ValueError) as caught:
            mixture(tmp_path, {"json_path": path, "about": about})
        assert str(caught.value) == (
            f"{tmp_path}/mixture.yaml: datasets[0]: {path} holds 95 records, 'about' says {about}, "
            "which allows 5% of it more or less"
        )
    with pytest.raises(ValueError, match="'records' 95 and 'about' 95: give one of them"):
        mixture(tmp_path, {"json_path": path, "records": 95, "about": 95})


@pytest.mark.proves("C7")
@given(
    records=st.integers(1, 60),
    strategy=st.sampled_from(
        ["all", "first:1%", "end:37%", "random:50%", "first:1", "random:100%"]
    ),
    weight=st.one_of(st.integers(1, 3), st.floats(0.01, 3)),
)
def test_what_is_expected_is_what_is_taken(records, strategy, weight):
    counts = chosen_counts(records, strategy, 0, "here")
    counts = weighted_counts(counts, weight, 0, "here", "a")
    entry = Entry(
        number=0,
        where="here",
        names=("a",),
        strategy=strategy,
        weight=weight,
        records=records,
        about=None,
    )
    assert entry.expected_taken() == counts.sum()


def test_a_check_reads_nothing(tmp_path):
    (tmp_path / "a.json").write_text("not read")
    (tmp_path / "b-1.tar").write_text("not read")
    entries = [
        {"json_path": "a.json", "records": 20, "sampling_strategy": "first:10%", "weight": 1.5},
        {"json_path": "{b,c}-*.tar", "about": 1000},
        {"json_path": "d{1,2}.json", "records": 30, "sampling_strategy": "first:5"},
        {"json_path": "e"},
    ]
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({"datasets": entries}))
    check = check_mixture(path, tmp_path)
    assert check.sources == 6
    assert check.expected == "about 1,003 records and those of 2 entries without a number"
    assert check.missing == (
        "c-*.tar (of about 1,000 records in all)",
        "d1.json (of 30 records in all)",
        "d2.json (of 30 records in all)",
        "e",
    )
    path.write_text("datasets: [{json_path: e}]")
    assert check_mixture(path, tmp_path).expected == "no number of records given"
    for wrong in ("weight: -1", "weight: .inf", "weight: '2'", "sampling_strategy: '10%'"):
        path.write_text(f"datasets: [{{json_path: e, {wrong}}}]")
        with pytest.raises(ValueError, match=r"m\.yaml.*: expected"):
            check_mixture(path, tmp_path)
    path.write_text("datasets: [{json_path: e, records: 4, sampling_strategy: 'end:5'}]")
    with pytest.raises(ValueError, match="takes 5 of 4 records"):
        check_mixture(path, tmp_path)


@pytest.mark.proves("C6")
def test_two_names_for_the_same_records(tmp_path):
    first = write(tmp_path, "tqa", 30)
    (tmp_path / "iconqa.json").write_bytes(first.read_bytes())
    entries = [{"json_path": str(first)}, {"json_path": str(tmp_path / "iconqa.json")}]
    with pytest.raises(ValueError, match=r"tqa\.json and .*iconqa\.json hold the same 30 records"):
        mixture(tmp_path, *entries)
    # The same file for two strategies is meant.
    two = [entries[0] | {"sampling_strategy": s} for s in ("first:3", "end:3")]
    assert len(mixture(tmp_path, *two)) == 6


def test_the_same_questions_about_other_images_are_no_clash(tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    entries = []
    for name in ("a", "b"):
        records = [
            {"id": f"{name}{i}", "image": f"{name}{i}.png", "conversations": turns}
            for i in range(5)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
        entries.append({"json_path": str(tmp_path / f"{name}.json")})
    assert len(mixture(tmp_path, *entries)) == 10
