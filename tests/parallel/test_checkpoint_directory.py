"""Wherever a save stops, a complete checkpoint is found and nothing else is taken for one."""

import pytest

from megatron_llava.parallel.checkpoint_directory import (
    find_checkpoint,
    iteration_directory,
    latest_iteration,
    partial_directory,
    publish,
    remove_leftovers,
    remove_oldest,
)


class Stopped(Exception):
    """The machine stops here."""


def write(root, text, word="a"):
    """A complete checkpoint of step 10 that has no name yet."""
    partial = partial_directory(root, 10, word)
    partial.mkdir(parents=True)
    (partial / "data").write_text(text)
    return partial


def published(root):
    """What a reader finds of the checkpoint that the tracker names."""
    return (find_checkpoint(root, latest_iteration(root)) / "data").read_text()


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_there_once_it_is_published(tmp_path):
    partial = write(tmp_path, "new")
    assert latest_iteration(tmp_path) is None and find_checkpoint(tmp_path, 10) is None
    publish(tmp_path, 10, partial)
    assert published(tmp_path) == "new"
    assert names(tmp_path) == ["iter_0000010", "latest_checkpointed_iteration.txt"]


@pytest.mark.parametrize("stops_before", range(4))
def test_a_checkpoint_is_found_wherever_its_replacement_stops(tmp_path, monkeypatch, stops_before):
    publish(tmp_path, 10, write(tmp_path, "old"))
    partial = write(tmp_path, "new", "b")
    steps = ["pathlib.Path.rename", "pathlib.Path.rename", "shutil.rmtree", "os.replace"]
    done = []

    def stopping(original):
        def step(*arguments, **options):
            if len(done) == stops_before:
                raise Stopped
            done.append(original)
            return original(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for name in sorted(set(steps)):
            module, _, attribute = name.rpartition(".")
            target = __import__("pathlib").Path if "Path" in module else __import__(module)
            patch.setattr(target, attribute, stopping(getattr(target, attribute)))
        with pytest.raises(Stopped):
            publish(tmp_path, 10, partial)
    expected = "old" if stops_before < 2 else "new"
    assert published(tmp_path) == expected
    remove_leftovers(tmp_path)
    assert published(tmp_path) == expected
    assert [name for name in names(tmp_path) if name.startswith("iter")] == ["iter_0000010"]
    assert iteration_directory(tmp_path, 10).is_dir()


def test_only_what_saves_leave_behind_is_removed(tmp_path):
    publish(tmp_path, 10, write(tmp_path, "good"))
    for name in ("iter_0000020.partial-1f", "iter_0000020.partial", "release.partial-1f"):
        (tmp_path / name).mkdir()
    kept = ["iter_0000010", "iter_0000010.mine", "hf", "my.partial-notes"]
    for name in kept[1:]:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, "latest_checkpointed_iteration.txt"])


@pytest.mark.proves("D9")
@pytest.mark.parametrize(
    "newest, keep, spared, left",
    [
        (50, 2, None, [40, 50, 60]),
        (50, 1, 20, [20, 50, 60]),
        (50, 2, 40, [40, 50, 60]),
        (50, 2, "release", [40, 50, 60]),
        (50, 9, None, [10, 20, 30, 40, 50, 60]),
        (60, 1, None, [60]),
        (20, 1, 60, [20, 30, 40, 50, 60]),
    ],
)
def test_the_newest_checkpoints_stay(tmp_path, newest, keep, spared, left):
    for iteration in (10, 20, 30, 40, 50, 60, "release"):
        (iteration_directory(tmp_path, iteration) / "part").mkdir(parents=True)
    others = ["hf", "iter_0000010.mine", "iter_0000010.partial-1f", "latest_checkpointed.txt"]
    for name in others:
        (tmp_path / name).mkdir()
    removed = remove_oldest(tmp_path, newest, keep, spared)
    kept = [f"iter_{iteration:07d}" for iteration in left]
    assert names(tmp_path) == sorted([*kept, *others, "release"])
    assert removed == [f"iter_{i:07d}" for i in range(10, 70, 10) if i not in left]


def test_multiples_of_the_retained_interval_stay(tmp_path):
    for iteration in (10, 20, 30, 40, 50, 60):
        iteration_directory(tmp_path, iteration).mkdir()
    assert remove_oldest(tmp_path, 60, 2, retain_every=30) == [
        f"iter_{iteration:07d}" for iteration in (10, 20, 40)
    ]
    assert names(tmp_path) == [f"iter_{iteration:07d}" for iteration in (30, 50, 60)]


def test_a_removal_that_stops_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise Stopped

    for iteration in (10, 20):
        iteration_directory(tmp_path, iteration).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", stop)
        with pytest.raises(Stopped):
            remove_oldest(tmp_path, 20, 1)
    assert find_checkpoint(tmp_path, 10) is None
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["iter_0000020"]
