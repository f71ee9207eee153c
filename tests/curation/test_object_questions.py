import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.curation.object_questions import (
    ABSENT,
    AbsentObjects,
    ObjectCounts,
    ObjectQuestionSettings,
    make_object_questions,
)

ROOMS = [
    ["table", "chair", "cup"],
    ["table", "chair", "dog"],
    ["table", "cup"],
    ["oven", "spoon"],
    ["oven", "dog", "cat"],
]


def made(folder, objects, field="objects", **changes):
    """The questions about records with such lists of objects, and the summary."""
    path = folder / "data.jsonl"
    records = [
        {"id": f"r{n}", "image": f"{n}.png"} | ({} if names is None else {"objects": names})
        for n, names in enumerate(objects)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    values = {"input": path, "output": folder / "q.jsonl", "objects": field, **changes}
    summary = make_object_questions(ObjectQuestionSettings(overwrite=True, **values))
    return [json.loads(line) for line in values["output"].read_text().splitlines()], summary


def counted(objects):
    counts = ObjectCounts()
    for names in objects:
        counts.add(names)
    return counts


@pytest.mark.proves("C14")
def test_absent_objects_by_hand():
    absent = AbsentObjects(counted(ROOMS), seed=0)
    # table 3; chair, cup, dog, oven 2; cat, spoon 1.
    assert absent.choose("popular", ["oven", "spoon"], 3, 0) == ["table", "chair", "cup"]
    # Beside the oven: spoon, dog and cat once each, of which the dog is the most frequent.
    assert absent.choose("adversarial", ["oven"], 2, 0) == ["dog", "cat"]
    # Beside table and cup: chair three times, dog once; then nothing, so the most frequent.
    assert absent.choose("adversarial", ["table", "cup"], 3, 0) == ["chair", "dog", "oven"]
    assert absent.choose("adversarial", ["table", "cup"], 9, 0) == [
        *("chair", "dog", "oven", "cat", "spoon")
    ]


@given(
    st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=6), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_half_of_the_questions_are_answered_by_yes_and_all_are_true(
    tmp_path_factory, objects, per_image, seed
):
    questions, summary = made(
        tmp_path_factory.mktemp("q"), [sorted(o) for o in objects], per_image=per_image, seed=seed
    )
    assert summary.questions == len(questions)
    answers = Counter()
    for one in questions:
        asked, answer = (turn["value"] for turn in one["conversations"])
        name = asked.removesuffix(" in the image?")[-1]
        there = name in objects[int(one["image"].removesuffix(".png"))]
        assert answer == ("Yes" if there else "No")
        answers[one["id"].rsplit("-", 1)[0], answer, name] += 1
    assert all(count == 1 for count in answers.values()), "a question is asked twice"
    everything = set().union(*objects)
    for number, names in enumerate(objects):
        expected = min(per_image, len(names), len(everything - names))
        for how in ABSENT:
            for answer in ("Yes", "No"):
                found = [key for key in answers if key[:2] == (f"r{number}-{how}", answer)]
                assert len(found) == expected


@pytest.mark.proves("C14")
def test_a_record_of_a_question(tmp_path):
    questions, summary = made(
        tmp_path, [["Umbrella", " umbrella"], ["dog"]], absent=("popular",), per_image=1
    )
    assert str(summary) == "4 questions about 2 records"
    assert questions[1] == {
        "id": "r0-popular-1",
        "image": "0.png",
        "kind": "popular",
        "conversations": [
            {"from": "human", "value": "<image>\nIs there a dog in the image?"},
            {"from": "gpt", "value": "No"},
        ],
    }
    texts = [one["conversations"][0]["value"] for one in questions]
    assert texts[0] == texts[3] == "<image>\nIs there an umbrella in the image?"


def test_random_objects_follow_the_seed_and_differ_by_record(tmp_path):
    objects = [["a"], ["a"], list("bcdefghijklmnop")]
    first, again, other = (
        made(tmp_path, objects, absent=("random",), per_image=6, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert first == again != other

    def asked(number):
        return [q["conversations"][0]["value"] for q in first if q["id"].startswith(f"r{number}-")]

    assert len(asked(0)) == len(asked(1)) == 2 and asked(0)[1] != asked(1)[1]


def test_records_that_are_asked_nothing_are_counted(tmp_path):
    questions, summary = made(tmp_path, [["a"], [], None, ["b"]], missing="drop")
    assert {one["image"] for one in questions} == {"0.png", "3.png"}
    assert str(summary) == "12 questions about 4 records, 2 of them asked nothing"


@pytest.mark.parametrize(
    ("objects", "changes", "words"),
    [
        ([["a"], None], {}, "data.jsonl:2: has no objects; --missing drop"),
        ([["a"], "b"], {}, 'data.jsonl:2: --objects objects: "b" is no list of names'),
        ([["a", " "]], {}, "is no list of names"),
        ([["a"]], {"field": "a..b"}, "--objects a..b: expected a key"),
        ([["a"]], {"per_image": 0}, "--per-image 0: expected at least 1"),
        ([["a"]], {"question": "Is it there?"}, "--question 'Is it there?': expected {object}"),
    ],
)
def test_a_user_error_is_one_line_and_nothing_is_written(tmp_path, objects, changes, words):
    with pytest.raises(ValueError) as caught:
        made(tmp_path, objects, **changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_record_without_one_image_is_named(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"objects": ["a"], "image": "a.png"}, {"objects": ["b"]}]))
    settings = ObjectQuestionSettings(
        input=path, output=tmp_path / "q.jsonl", objects="objects", absent=("popular",)
    )
    with pytest.raises(ValueError, match="record 1.*one image under 'image'"):
        make_object_questions(settings)
    assert not list(tmp_path.glob("q.jsonl*"))
