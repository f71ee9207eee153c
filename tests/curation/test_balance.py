"""Sampling: its expectation, that shards change nothing, and what the two passes refuse."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, norm

from megatron_llava.curation.balance import drawn, entry_probabilities, stays
from megatron_llava.curation.balance_captions import (
    SampleSettings,
    count_captions,
    sample_captions,
)
from megatron_llava.curation.captions import CaptionSettings
from megatron_llava.curation.match_counts import shard_path
from megatron_llava.data.records import RecordFile, parse_record

ENTRIES = ["cat", "dog", "rare bird", "never", "St. Louis"]


def record(number, caption):
    turns = [
        {"from": "human", "value": "<image>\nrare bird?"},
        {"from": "gpt", "value": caption},
    ]
    return {"id": number, "image": f"{number}.png", "conversations": turns}


def captions_of(count):
    """`cat` in each second one, `dog` in each third, `rare bird` in each hundredth."""
    for n in range(count):
        words = ["cat"] * (n % 2 == 0) + ["dog"] * (n % 3 == 0) + ["rare bird"] * (n % 100 == 0)
        yield " and ".join(words) or "nothing"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "entries.json").write_text(json.dumps(ENTRIES))
    records = [record(n, caption) for n, caption in enumerate(captions_of(3000))]
    (tmp_path / "data.json").write_text(json.dumps(records[:1000]))
    lines = "".join(json.dumps(r) + "\n" for r in records[1000:])
    (tmp_path / "data.jsonl").write_text(lines)
    return tmp_path


def settings_of(folder, **changes):
    values = {"input": folder / "data.{json,jsonl}", **changes}
    return CaptionSettings(**values)


def count(folder, **changes):
    overwrite = changes.pop("overwrite", False)
    return count_captions(
        settings_of(folder, **changes),
        folder / "entries.json",
        folder / "counts",
        overwrite=overwrite,
        log=io.StringIO(),
    )


def sample(folder, name="kept.jsonl", entries="entries.json", t=100, counts=None, **changes):
    overwrite = changes.pop("overwrite", False)
    sampling = SampleSettings(
        counts=counts, output=folder / name, max_per_entry=t, overwrite=overwrite
    )
    return sample_captions(
        settings_of(folder, **changes), folder / entries, sampling, log=io.StringIO()
    )


def numbers(path):
    return [parse_record(raw, source).id for source, raw in RecordFile(path)]


def test_probabilities():
    counts = np.array([0, 1, 99, 100, 101, 400])
    assert entry_probabilities(counts, 100).tolist() == [1, 1, 1, 1, 100 / 101, 0.25]
    assert not stays(np.array([]), 0, 0)
    assert all(stays(np.array([0.01, 1.0]), 0, number) for number in range(1000))


def test_numbers_drawn_are_uniform_and_independent():
    values = np.array([[drawn(seed, n) for n in range(20_000)] for seed in (0, 1)])
    assert (values >= 0).all() and (values < 1).all()
    for row in values:
        for share in (0.1, 0.5, 0.9):
            assert abs(norm.ppf(binom.cdf((row < share).sum(), row.size, share))) < 4
    assert abs(np.corrcoef(values)[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(values[0, 1:], values[0, :-1])[0, 1]) < 4 / np.sqrt(20_000)


def test_what_stays_is_as_often_as_independent_draws_would_have_it():
    """Every combination of entries against draws of numpy, one for each entry."""
    rng = np.random.default_rng(0)
    for probabilities in ([0.3], [0.1, 0.2], [0.05] * 20, [0.9, 0.01]):
        p = np.array(probabilities)
        ours = sum(stays(p, 5, number) for number in range(20_000))
        independent = (rng.random((20_000, len(p))) < p).any(axis=1).sum()
        chance = 1 - np.prod(1 - p)
        assert abs(norm.ppf(binom.cdf(ours, 20_000, chance))) < 4
        assert abs(norm.ppf(binom.cdf(independent, 20_000, chance))) < 4


def test_a_file_is_balanced(folder):
    summary = sample(folder)
    captions = list(captions_of(3000))
    kept = numbers(folder / "kept.jsonl")
    assert kept == sorted(kept, key=int) and len(kept) == summary.kept
    counts = Counter(entry for c in captions for entry in ENTRIES if f" {entry} " in f" {c} ")
    assert counts == {"cat": 1500, "dog": 1000, "rare bird": 30}
    # Tail entries stay whole, what holds nothing goes, the others stay with the chance of any draw.
    held = [[e for e in ENTRIES if f" {e} " in f" {c} "] for c in captions]
    chances = [1 - np.prod([1 - min(1, 100 / counts[e]) for e in entries]) for entries in held]
    assert {str(n) for n, chance in enumerate(chances) if chance == 1} <= set(kept)
    assert not {str(n) for n, chance in enumerate(chances) if chance == 0} & set(kept)
    deviation = np.sqrt(sum(c * (1 - c) for c in chances))
    assert abs(len(kept) - sum(chances)) < 4 * deviation
    after = summary.after
    assert (summary.before.none, summary.before.tail, summary.before.head) == (2, 1, 2)
    assert summary.before.tail_share == pytest.approx(30 / 2530)
    assert after.tail_share == pytest.approx(30 / sum(len(held[int(n)]) for n in kept))
    assert (summary.records, summary.matched) == (3000, 2000) and summary.unmatchable == 1
    assert "3,000 captions, 1,000 hold no entry" in str(summary)


def test_over_many_seeds_an_entry_has_its_expected_number(folder):
    lines = "".join(json.dumps({"caption": "cat", "n": n}) + "\n" for n in range(500))
    (folder / "cats.jsonl").write_text(lines)
    kept = [
        sample(
            folder,
            t=50,
            input=folder / "cats.jsonl",
            caption_key="caption",
            seed=seed,
            overwrite=True,
        ).kept
        for seed in range(20)
    ]
    assert len(set(kept)) > 5
    assert abs(norm.ppf(binom.cdf(sum(kept), 20 * 500, 0.1))) < 4


def test_a_run_is_repeated_exactly_and_another_seed_differs(folder):
    made = []
    for name, seed in (("a.jsonl", 0), ("b.jsonl", 0), ("c.jsonl", 1)):
        sample(folder, name, seed=seed)
        made.append((folder / name).read_bytes())
    assert made[0] == made[1] != made[2]


def test_lines_stay_as_they_are_and_a_larger_limit_only_adds(folder):
    few = sample(folder, "few.jsonl", t=50)
    more = sample(folder, "more.jsonl", t=300)
    assert few.kept < more.kept
    lines = (folder / "more.jsonl").read_bytes().splitlines()
    assert set((folder / "few.jsonl").read_bytes().splitlines()) < set(lines)
    given = (folder / "data.jsonl").read_bytes().splitlines()
    assert set(lines[-50:]) <= set(given)


@pytest.mark.parametrize(("counted", "sampled"), [(1, 3), (4, 1), (3, 2)])
def test_shards_are_the_whole(folder, counted, sampled):
    whole = sample(folder, "whole.jsonl")
    for number in reversed(range(counted)):
        path, _, _ = count(folder, shard=(number, counted))
        assert path == shard_path(folder / "counts", (number, counted))
    parts, kept = b"", 0
    for number in range(sampled):
        summary = sample(
            folder, f"{number}.jsonl", counts=folder / "counts", shard=(number, sampled)
        )
        assert summary.before == whole.before
        parts += (folder / f"{number}.jsonl").read_bytes()
        kept += summary.kept
    assert parts == (folder / "whole.jsonl").read_bytes() and kept == whole.kept
    assert not list(folder.glob("*.partial"))


def test_counts_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="expected the counts of all shards, found none"):
        sample(folder, counts=folder / "counts")
    count(folder, shard=(0, 3))
    with pytest.raises(ValueError, match="2 of 3 shards are not counted yet: counts-00001-of-0000"):
        sample(folder, counts=folder / "counts")
    count(folder, shard=(1, 2))
    with pytest.raises(ValueError, match="found 2 and 3 shards"):
        sample(folder, counts=folder / "counts")
    for path in folder.glob("counts-*"):
        path.unlink()
    count(folder)
    (folder / "other.txt").write_text("cat\n")
    with pytest.raises(ValueError, match="made with other entries: count again"):
        sample(folder, counts=folder / "counts", entries="other.txt")
    with pytest.raises(ValueError, match="made with seed 0, not 1: count again"):
        sample(folder, counts=folder / "counts", seed=1)
    with pytest.raises(ValueError, match="made with records 3000, not 1000"):
        sample(folder, counts=folder / "counts", input=folder / "data.json")
    changed = [record(n, "never") for n in range(3000)]
    (folder / "changed.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="the records are not those that were counted"):
        sample(folder, counts=folder / "counts", input=folder / "changed.json")
    (folder / "counts-00000-of-00001.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"counts-00000-of-00001\.npz: damaged"):
        sample(folder, counts=folder / "counts")
    assert not list(folder.glob("kept*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": 0}, "--max-per-entry 0: expected 1 or more"),
        ({"name": "kept.json"}, "kept.json: expected a .jsonl file"),
        ({"name": "no/kept.jsonl"}, "is no folder"),
        ({"name": "data.jsonl"}, "data.jsonl: exists; --overwrite replaces it"),
        ({"shard": (1, 2)}, "--shard 1/2: needs --counts"),
        ({"shard": (2, 2), "counts": "counts"}, "--shard 2/2: shards are 0/N to N-1/N"),
        ({"caption_key": "caption"}, "record 0 (id=0): expected an object with a string 'caption'"),
        ({"input": "plain.jsonl"}, "plain.jsonl:2: no 'conversations'"),
        ({"input": "a.tar"}, "a.tar"),
        ({"input": "absent.json"}, "absent.json: no such file"),
        ({"entries": "absent.json"}, "--entries"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(folder, changes, message):
    good = json.dumps(record(0, "a cat"))
    (folder / "plain.jsonl").write_text(f'{good}\n{{"caption": "a cat"}}\n')
    before = sorted(folder.iterdir())
    changes = {
        key: folder / value if key in ("input", "counts") else value
        for key, value in changes.items()
    }
    with pytest.raises(ValueError) as error:
        sample(folder, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before


def test_only_json_records_are_taken(folder):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [record(0, "a cat")["conversations"]]
    pa.parquet.write_table(pa.table({"conversations": rows}), folder / "data.parquet")
    with pytest.raises(ValueError, match=r"data\.parquet: only records of \.json and \.jsonl"):
        sample(folder, input=folder / "data.parquet")


def test_counting_does_not_replace_counts_unasked(folder):
    count(folder)
    with pytest.raises(ValueError, match=r"--counts .*exists; --overwrite replaces it"):
        count(folder)
    count(folder, overwrite=True)
