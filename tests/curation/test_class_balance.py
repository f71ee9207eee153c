import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.class_balance import BalanceSettings, balance_classes, class_of


def record(number, kind):
    return {"id": number, "conversations": [], "source": kind, "meta": {"kind": {"name": kind}}}


RECORDS = [record(n, kind) for n, kind in enumerate("aaabbbbbbbbbbbbbbbbbbbbcbbbbaaaac")]


@pytest.fixture
def run(tmp_path):
    """Runs over records; those kept and the summary."""

    def run(records, by="source", max_per_class=4, suffix=".jsonl", **changes):
        path = tmp_path / f"data{suffix}"
        text = "\n".join(map(json.dumps, records)) if suffix == ".jsonl" else json.dumps(records)
        path.write_text(text)
        values = {"input": path, "output": tmp_path / "kept.jsonl", "overwrite": True}
        settings = BalanceSettings(by=by, max_per_class=max_per_class, **{**values, **changes})
        summary = balance_classes(settings)
        kept = [json.loads(line) for line in settings.output.read_text().splitlines()]
        assert not list(tmp_path.glob("*.partial"))
        return kept, summary

    return run


@pytest.mark.proves("C10")
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_classes_are_cut_to_the_limit(run, suffix):
    kept, summary = run(RECORDS, suffix=suffix)
    assert Counter(item["source"] for item in kept) == {"a": 4, "b": 4, "c": 2}
    assert [item["id"] for item in kept] == sorted(item["id"] for item in kept)
    assert all(item == RECORDS[item["id"]] for item in kept)
    assert summary.lines() == [
        '"a": 4 of 7 records',
        '"b": 4 of 24 records',
        '"c": 2 of 2 records',
        "all: 10 of 33 records",
    ]


def test_the_choice_is_seeded(run):
    choices = [[item["id"] for item in run(RECORDS, seed=seed)[0]] for seed in (0, 0, 1, 2)]
    assert choices[0] == choices[1]
    assert len(set(map(tuple, choices))) == 3
    first = [n for n, item in enumerate(RECORDS) if item["source"] == "b"][:4]
    assert not set(first) <= set(choices[0])


def test_other_classes_and_their_order_change_nothing(run):
    """Records of one class keep their order among themselves; all else is shuffled or left out."""
    groups = {kind: [r for r in RECORDS if r["source"] == kind] for kind in "abc"}
    expected = sorted(item["id"] for item in run(RECORDS)[0])
    for seed in range(5):
        places = [item["source"] for item in RECORDS]
        random.Random(seed).shuffle(places)
        each = {kind: iter(group) for kind, group in groups.items()}
        kept, _ = run([next(each[kind]) for kind in places])
        assert sorted(item["id"] for item in kept) == expected
    kept, _ = run(groups["b"])
    assert {item["id"] for item in kept} == {n for n in expected if RECORDS[n]["source"] == "b"}


def test_every_record_of_a_class_is_chosen_as_often(run):
    counts = Counter(
        item["id"] for seed in range(100) for item in run(RECORDS[:7], "source", 2, seed=seed)[0]
    )
    # 100 draws of 2 of the 3 of a, and of 2 of the 4 of b; within 4 standard deviations.
    assert all(abs(counts[n] - 100 * 2 / 3) < 4 * (100 * 2 / 9) ** 0.5 for n in range(3))
    assert all(abs(counts[n] - 50) < 4 * (100 / 4) ** 0.5 for n in range(3, 7))


def test_a_dotted_path(run):
    kept, _ = run(RECORDS, by="meta.kind.name")
    assert kept == run(RECORDS)[0]


def test_records_without_the_field(run, tmp_path):
    items = [*RECORDS[:2], {"id": 2}, {"id": 3, "source": None}, *RECORDS[4:6]]
    for by, line in (("source", 3), ("meta.kind.name", 3), ("source.name", 1)):
        with pytest.raises(ValueError, match=rf"data\.jsonl:{line}: has no {by}; --missing keep"):
            run(items, by=by)
    kept, summary = run(items, max_per_class=1, missing="keep")
    assert [item["id"] for item in kept][1:3] == [2, 3] and len(kept) == 4
    assert summary.lines()[2:] == ["(no such field): 2 of 2 records", "all: 4 of 6 records"]
    kept, summary = run(items, max_per_class=9, missing="drop")
    assert [item["id"] for item in kept] == [0, 1, 4, 5]
    assert summary.lines()[2:] == ["(no such field): 0 of 2 records", "all: 4 of 6 records"]
    with pytest.raises(ValueError, match="--by nothing: no record has it, and --missing drop"):
        run(items, by="nothing", missing="drop")


@given(st.text(max_size=20) | st.integers() | st.booleans())
def test_values_of_another_type_are_other_classes(value):
    name = class_of({"a": {"b": value}}, "a.b", "")
    again = json.loads(name)
    assert (again, type(again)) == (value, type(value))


@pytest.mark.parametrize("value", [["a"], {"b": 1}, 0.5])
def test_a_value_that_names_no_class(run, value):
    with pytest.raises(
        ValueError, match=r"data\.json: record 1 \(id=9\): --by source: .* names no"
    ):
        run([RECORDS[0], {"id": 9, "source": value}], suffix=".json")


def test_lines_that_are_no_record(run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{json.dumps(RECORDS[0])}\n{{"id": 1,\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: not valid JSON: "):
        run([], input=path)
    path.write_text(f"{json.dumps(RECORDS[0])}\n3\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: expected an object, found the value 3"):
        run([], input=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_per_class": 0}, "--max-per-class 0: expected at least 1"),
        ({"by": "meta..kind"}, r"--by meta\.\.kind: expected a key"),
        ({"by": ""}, "--by : expected a key"),
    ],
)
def test_settings_that_cannot_be_used(run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(RECORDS, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_an_output_that_exists(run, tmp_path):
    run(RECORDS)
    with pytest.raises(ValueError, match=r"--output .*kept\.jsonl exists: .*--overwrite"):
        run(RECORDS, overwrite=False)
