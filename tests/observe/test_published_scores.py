"""Published tables: what they say of themselves is what is computed of their numbers."""

import csv
import io

import pytest

from megatron_llava.observe.published_scores import (
    ScoreTable,
    groups,
    maxima,
    number,
    read_tables,
    row_differences,
    row_means,
    to_csv,
    to_markdown,
    with_means,
)

TABLES = read_tables()
KNOWLEDGE = groups(TABLES)["knowledge"]


def table(rows, labels=1, columns=("name", "a", "b"), **more):
    values = {"name": "t", "title": "T", "source": "000", "labels": labels, "columns": columns}
    return ScoreTable(**values, rows=tuple(rows), **more)


@pytest.mark.proves("E5")
def test_published_means_are_those_of_their_rows_but_for_five():
    with_mean = [t for t in TABLES.values() if t.mean] + [KNOWLEDGE]
    rows = [
        (one.name, row, number(one.rows[row][one.columns.index(one.mean)]), mean)
        for one in with_mean
        for row, mean in enumerate(row_means(one))
    ]
    assert len(rows) == 53
    other = [(name, row) for name, row, said, mean in rows if abs(said - mean) > 0.06]
    assert other == [("formats", row) for row in range(1, 6)]


@pytest.mark.proves("E5")
def test_means_of_knowledge_leave_infovqa_out():
    assert row_means(KNOWLEDGE)[0] == pytest.approx(67.3625)
    shown = with_means(KNOWLEDGE)
    assert shown.columns[3:6] == ("Avg.", "computed mean", "AI2D")
    assert shown.rows[0][3:6] == ("67.4", "67.36", "67.4")


@pytest.mark.proves("E6")
def test_the_maxima_are_what_was_set_in_bold():
    marked = [one for one in TABLES.values() if one.marked and not one.group]
    assert {one.name for one in marked} == {
        *("next_2401", "next_2405", "encoders", "grids_and_tokens", "llm_scaling"),
        *("stage1_public", "stage1_web"),
    }
    for one in [*marked, KNOWLEDGE]:
        differ = {
            (one.rows[row][1], one.columns[column], one.rows[row][column])
            for row, column in maxima(one) ^ one.marked
        }
        # Of its own table these are the best; the merged table of the source does not mark them.
        local = {"UReader 100K", "ShareGPT4V Chinese Caption 100K"} if one is KNOWLEDGE else ()
        assert differ == {(name, "InfoVQA", "36.9") for name in local}, one.name


def test_maxima_by_hand():
    rows = [("x", "1.0", "-"), ("y", "10", "2/3"), ("x", "10.0", "7%")]
    assert maxima(table(rows)) == {(1, 1), (2, 1), (2, 2)}
    assert maxima(table(rows, best_within="name")) == {(1, 1), (2, 1), (2, 2)}
    assert maxima(table(rows[:2], best_within="name")) == {(0, 1), (1, 1)}
    assert maxima(table(rows, best="rows")) == {(0, 1), (1, 1), (2, 1)}
    assert maxima(table(rows, difference=("a", "b", "b"))) == {(2, 2)}


@pytest.mark.proves("E6")
def test_the_merged_view_has_the_four_tables_under_their_titles():
    assert [title for _, title in KNOWLEDGE.headings] == [
        "Baseline",
        "High-quality knowledge: detailed re-captioning",
        "High-quality knowledge: new domains",
        "Mixed data",
    ]
    assert [row for row, _ in KNOWLEDGE.headings] == [0, 1, 7, 10] and len(KNOWLEDGE.rows) == 12
    lines = to_markdown(KNOWLEDGE).splitlines()
    assert "| **Mixed data** | | | | | | | | | | | | |" in lines
    assert (
        "| 558K | 3M (ReCap) | 790K | **70.7** | **72.7** | **68.3** | 77.7 | 38.1 | **38.6** | "
        "65.7 | 80.1 | 72.0 | **90.4** |"
    ) in lines
    assert "Published, in document 001; not measured here." in lines


@pytest.mark.proves("E6")
def test_csv_has_a_line_for_every_cell():
    tables = list(TABLES.values())
    lines = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert len(lines) == sum(len(t.rows) * (len(t.columns) - t.labels) for t in tables)
    of_row = [line for line in lines if line["row"] == "558K; 3M (ReCap); 790K"]
    assert of_row[0] == {
        "table": "knowledge_recaption",
        "source": "001",
        "row": "558K; 3M (ReCap); 790K",
        "column": "Avg.",
        "value": "70.7",
        "best": "1",
    }
    assert [line["best"] for line in of_row] == list("1111010111")


@pytest.mark.proves("E7")
def test_published_gains_are_differences():
    gains = {}
    for one in TABLES.values():
        if one.difference is not None:
            said = [number(row[one.columns.index(one.difference[0])]) for row in one.rows]
            assert row_differences(one) == pytest.approx(said)
            gains |= {row[0]: gain for row, gain in zip(one.rows, said, strict=True)}
    assert (gains["TextVQA"], gains["DocVQA"], gains["ChartQA"]) == (8.9, 11.9, 17.1)
    assert len(gains) == 12
    vqa = TABLES["benchmarks_vqa"]
    assert "15.3 %" in vqa.note and 100 * gains["TextVQA"] / vqa.score(2, 1) == pytest.approx(
        15.3, abs=0.05
    )


@pytest.mark.proves("E7")
def test_scores_of_both_documents_are_there():
    assert {one.source for one in TABLES.values()} == {"001", "004"}
    texts = TABLES["benchmarks_text"]
    assert [row[2] for row in texts.rows] == ["55.8%", "62.3%", "41.5%", "63.2%"]
    assert TABLES["projector_layers"].rows[1] == ("2", "82.0%", "70.5%", "2.3")
