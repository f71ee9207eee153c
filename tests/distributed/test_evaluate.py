"""tools/evaluate.py over several ranks: what one rank answers, in the order of the questions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from own_process import ENVIRONMENT

EVALUATE = str(Path(__file__).parents[2] / "tools" / "evaluate.py")
QUESTIONS = 11


@pytest.fixture(scope="module")
def asked(setup, tmp_path_factory):
    """The last image questions of the set-up and some without an image."""
    path = tmp_path_factory.mktemp("asked") / "questions.json"
    records = json.loads(setup.store.with_suffix(".input.json").read_text())
    path.write_text(json.dumps(records[40 : 40 + QUESTIONS]))
    return path


def evaluate(root, asked, images, *flags, ranks=1, **environment):
    launcher = []
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    given = ["--device=cpu", f"--load={root}", f"--input={asked}", f"--image-folder={images}"]
    given += ["--conversation-template=v1", "--max-new-tokens=8", "--temperature=1", *flags]
    return subprocess.run(
        [sys.executable, *launcher, EVALUATE, *given],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", **environment},
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def of_one_rank(setup, asked, tmp_path_factory):
    def rows(model):
        output = tmp_path_factory.mktemp("answers") / "one.jsonl"
        done = evaluate(setup.checkpoint(model), asked, setup.folder, f"--output={output}")
        assert done.returncode == 0, done.stderr
        return lines(output)

    return rows


@pytest.mark.parametrize(("model", "tensor_parallel", "ranks"), [("plain", 2, 4), ("dinov2", 2, 2)])
def test_ranks_answer_as_one(setup, asked, of_one_rank, tmp_path, model, tensor_parallel, ranks):
    output = tmp_path / "answers.jsonl"
    flags = [f"--output={output}", f"--tensor-model-parallel-size={tensor_parallel}"]
    done = evaluate(setup.checkpoint(model), asked, setup.folder, *flags, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{QUESTIONS} questions in") == 1
    expected = of_one_rank(model)
    assert [row["id"] for row in expected] == [str(40 + number) for number in range(QUESTIONS)]
    assert len({row["answer"] for row in expected}) > QUESTIONS // 2
    assert lines(output) == expected


def test_ranks_that_do_not_fit_are_refused(setup, asked):
    flag = "--tensor-model-parallel-size=3"
    done = evaluate(setup.root, asked, setup.folder, flag)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--tensor-model-parallel-size 3 does not divide the 1 ranks" in done.stderr
    done = evaluate(setup.root, asked, setup.folder, flag, RANK="0", WORLD_SIZE="3")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "evaluate: error: --num-attention-heads 8 cannot be divided" in done.stderr
