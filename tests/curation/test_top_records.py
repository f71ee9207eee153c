import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.top_records import TopSettings, select_top
from megatron_llava.data.mixture_file import open_records


def select(folder, records, count, by="score", suffix=".jsonl", **changes):
    """Runs over records; those kept and the summary."""
    path = folder / f"data{suffix}"
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]")
    values = {"input": path, "output": folder / "top.jsonl", "overwrite": True, **changes}
    summary = select_top(TopSettings(by=by, count=count, **values))
    return [json.loads(line) for line in values["output"].read_text().splitlines()], summary


def scored(*scores):
    return [{"id": number, "score": score} for number, score in enumerate(scores)]


@pytest.mark.proves("C9")
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_highest_values_stay_in_their_order(tmp_path, suffix):
    records = scored(0.5, -3, 0.9, 1e-9, 0.9, 7, 0.5)
    kept, summary = select(tmp_path, records, 5, suffix=suffix)
    assert kept == [records[n] for n in (0, 2, 4, 5, 6)]
    kept, summary = select(tmp_path, records, 4, suffix=suffix)
    assert kept == [records[n] for n in (0, 2, 4, 5)], "of two equal ones the earlier"
    assert str(summary) == "4 of 7 records: values from 0.5 to 7"
    assert not list(tmp_path.glob("*.partial"))


@given(st.lists(st.floats(-5, 5) | st.integers(-5, 5), min_size=1, max_size=30), st.data())
def test_it_is_what_sorting_gives(tmp_path_factory, scores, data):
    count = data.draw(st.integers(1, len(scores)))
    kept, summary = select(tmp_path_factory.mktemp("top"), scored(*scores), count)
    by_score = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
    assert [record["id"] for record in kept] == sorted(by_score[:count])
    assert (summary.lowest, summary.highest) == (scores[by_score[count - 1]], max(scores))


@pytest.mark.proves("C9")
def test_the_same_number_of_random_records_is_another_choice(tmp_path):
    records = scored(*range(40))
    best, _ = select(tmp_path, records, 8)
    entry = {"json_path": str(tmp_path / "data.jsonl"), "sampling_strategy": "random:8"}
    (tmp_path / "random.yaml").write_text(json.dumps({"datasets": [entry]}))
    chosen = {
        seed: [json.loads(raw)["id"] for _, raw in open_records(tmp_path / "random.yaml", seed)]
        for seed in (0, 1)
    }
    assert [record["id"] for record in best] == list(range(32, 40))
    assert len(set(chosen[0])) == len(set(chosen[1])) == 8
    assert chosen[0] != chosen[1] != [record["id"] for record in best]


def test_records_without_a_value(tmp_path):
    records = [{"id": 0}, *scored(1, 2), {"id": 9, "score": None}]
    with pytest.raises(ValueError, match=r"data\.jsonl:1: has no score; --missing drop"):
        select(tmp_path, records, 1)
    kept, summary = select(tmp_path, records, 2, missing="drop")
    assert kept == records[1:3]
    assert str(summary) == "2 of 4 records, 2 of them without it: values from 1 to 2"
    with pytest.raises(ValueError, match="--count 3: only 2 of 4 records have a score"):
        select(tmp_path, records, 3, missing="drop")


def test_a_dotted_path(tmp_path):
    records = [{"meta": {"score": score}} for score in (1, 3, 2)]
    assert select(tmp_path, records, 1, by="meta.score")[0] == [records[1]]


@pytest.mark.parametrize("value", ["0.5", True, [1], float("inf"), float("nan")])
def test_values_that_are_no_numbers(tmp_path, value):
    with pytest.raises(ValueError, match=r"data\.jsonl:2: --by score: .* is no number"):
        select(tmp_path, scored(1, value), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "--count 0: expected at least 1"),
        ({"by": "a..b"}, r"--by a\.\.b: expected a key"),
        ({"overwrite": False}, r"top\.jsonl exists: .*--overwrite"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, changes, message):
    select(tmp_path, scored(1, 2), 1)
    with pytest.raises(ValueError, match=message):
        select(tmp_path, scored(1, 2), **{"count": 1, **changes})
