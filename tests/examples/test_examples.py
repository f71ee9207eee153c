"""The scripts of examples/: short, valid, of the published numbers, and running on tiny weights."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from datetime import date
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(
    str(path.relative_to(EXAMPLES))
    for path in [*EXAMPLES.glob("*/*.sh"), *EXAMPLES.glob("*/*.sbatch")]
    # It installs what it needs, and resumes between its nine steps.
    if path.parent.name != "quickstart"
)
STORIES = {
    "lora_2x4090": ["run.sh"],
    "llava_next_stage1_stage2": ["stage1.sh", "stage2.sh", "stage3.sh"],
    "llava_next_llama3_8b": ["stage1.sh", "stage2.sh"],
    "onevision_0.5b_7b_72b": ["run.sh"],
    "interleave": ["run.sh"],
    "video": ["run.sh"],
    "cluster": ["slurm.sbatch"],
    "convert": ["run.sh"],
    "quickstart": ["run.sh"],
}
# tests/quickstart runs the quickstart's parts.
SHORT = [n for n, scripts in STORIES.items() if len(scripts) == 1 and n != "quickstart"]
TODAYS = SHORT[date.today().toordinal() % len(SHORT)]
OF_SCHEDULERS = ("SLURM", "SKYPILOT", "TORCHELASTIC", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OF_SCHEDULERS)}
    kept["PYTHONPATH"] = str(ROOT)
    return {**kept, **more}


@cache
def dry_run(script: str, settings: str = "") -> str:
    """What a script prints with DRY_RUN=1 and some variables."""
    variables = dict(item.split("=") for item in settings.split())
    done = subprocess.run(
        ["bash", EXAMPLES / script],
        env=environment(DRY_RUN="1", **variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_folder_is_a_story_with_a_readme():
    made = ("out", "__pycache__")
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in made}
    assert folders == {*STORIES, "recipes", "sweeps"}
    table = (EXAMPLES / "README.md").read_text()
    for name in STORIES:
        assert f"[`{name}`]" in table
        assert name == "quickstart" or (EXAMPLES / name / "README.md").is_file()


@pytest.mark.parametrize("setting", ["STAGE=typo", "SIZE=9b"])
def test_an_unknown_stage_is_refused_before_anything_is_done(setting, tmp_path):
    script = EXAMPLES / "onevision_0.5b_7b_72b" / "run.sh"
    command = ["env", setting, f"OUTPUT={tmp_path / 'out'}", "bash", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{setting}: give ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_valid(script):
    text = (EXAMPLES / script).read_text()
    assert subprocess.run(["bash", "-n", EXAMPLES / script]).returncode == 0
    assert len(text.splitlines()) <= 60 and max(map(len, text.splitlines())) <= 100
    assert "set -euo pipefail" in text and ". examples/toy.sh" in text
    for recipe in re.findall(r"examples/recipes/(\w+)\.yaml", text):
        assert (EXAMPLES / "recipes" / f"{recipe}.yaml").is_file()


@pytest.mark.proves("E1")
def test_the_tasks_of_the_published_evaluations_are_listed():
    """17 of images, 8 of videos, 3 of several images."""
    text = (EXAMPLES / "convert" / "README.md").read_text()
    tasks = {
        row: names.split(",") for row, names in re.findall(r"^\| (\w.*) \| `(.+)` \|$", text, re.M)
    }
    assert {row: len(names) for row, names in tasks.items()} == {
        "images": 17,
        "videos": 8,
        "several images": 3,
    }
    for row, first, last in [
        ("images", "ai2d", "mmstar"),
        ("videos", "activitynetqa", "perceptiontest_val_mc"),
        ("several images", "llava-interleave-bench", "mmmu_test"),
    ]:
        assert (tasks[row][0], tasks[row][-1]) == (first, last)
        assert len(set(tasks[row])) == len(tasks[row])
    assert "conv_template=qwen_1_5,model_name=llava_qwen" in text


NEXT, LLAMA, ONEVISION = (
    "llava_next_stage1_stage2/",
    "llava_next_llama3_8b/",
    "onevision_0.5b_7b_72b/run.sh",
)
EVERYTHING = "(mm_vision_tower, mm_mlp_adapter, mm_language_model)"
PUBLISHED = [
    # Stage 1: projector only, 558K, 1e-3, batch 256, warmup 0.03 or 2000 steps.
    ("D1", NEXT + "stage1.sh", "", ["2180 steps of 256 samples", "lr 0.001, 66 warmup steps"]),
    ("D1", NEXT + "stage1.sh", "", ["21.0 M learn (mm_mlp_adapter)", "weight decay 0"]),
    ("D1", NEXT + "stage1.sh", "WARMUP_STEPS=2000", ["2000 warmup steps"]),
    ("D1", ONEVISION, "", ["2180 steps", "learn (mm_mlp_adapter)", "lr 0.001, 66 warmup"]),
    # Stage 1.5: everything, 118K and 4M, from stage 1.
    (
        "D2",
        NEXT + "stage2.sh",
        "RECIPE=knowledge_recap_118k SAMPLES=118000",
        ["1844 steps of 64 samples", "knowledge_recap_118k.yaml", "-next/stage1", EVERYTHING],
    ),
    (
        "D2",
        ONEVISION,
        "STAGE=mid",
        ["15625 steps of 256", "4000000 in all", "--pretrained-checkpoint out/onevision-7b/stage1"],
    ),
    # Stage 2: everything, 1e-5 (2e-5 in June 2024), the tower 2e-6, cosine, one epoch.
    ("D3", LLAMA + "stage2.sh", "", ["lr 1e-05, tower 2e-06, 351 warmup steps, then cosine"]),
    ("D3", NEXT + "stage2.sh", "", ["lr 2e-05, tower 2e-06, 366 warmup steps", EVERYTHING]),
    ("D3", ONEVISION, "STAGE=single_image", ["12500 steps", "lr 1e-05, tower 2e-06"]),
    ("D3", ONEVISION, "STAGE=onevision SIZE=0.5b", ["6250 steps", "8 GPUs", EVERYTHING]),
    # Seed 004's second stage: the tower is frozen, batch 128.
    (
        "D4",
        NEXT + "stage2.sh",
        "TOWER=frozen BATCH=128 RECIPE=llava_instruct_158k SAMPLES=157712",
        ["1233 steps of 128 samples", "lr 2e-05, 37 warmup", "(mm_mlp_adapter, mm_language_model)"],
    ),
    # Its third: all of it, batch 64, five patches.
    (
        "D4",
        NEXT + "stage3.sh",
        "",
        ["1563 steps of 64 samples", "lr 2e-05, 47 warmup", "max_patches=5", EVERYTHING],
    ),
    ("D5", LLAMA + "stage1.sh", "", ["learn (mm_mlp_adapter)", "template plain"]),
    ("D5", LLAMA + "stage2.sh", "", [EVERYTHING, "llama3/stage1", "template llava_llama_3"]),
    (
        "D6",
        "lora_2x4090/run.sh",
        "",
        ["lora_rank: 32", "lora_alpha: 64", "lora_dropout: 0.05", "lr 1e-05", "weight decay 0"],
    ),
    (
        "D7",
        "lora_2x4090/run.sh",
        "",
        [
            "14815 steps of 32 samples = 2 data-parallel ranks x 16: 474080 in all",
            "445 warmup steps, then cosine",
            "2304x2304 is 36 views",
        ],
    ),
    ("D8", NEXT + "stage2.sh", "", ["12177 steps of 64 samples"]),
    (
        "D8",
        LLAMA + "stage2.sh",
        "",
        ["16 GPUs", "11683 steps of 64 samples = 16 data-parallel ranks x 4: 747712 in all"],
    ),
    (
        "D9",
        "lora_2x4090/run.sh",
        "",
        ["logs every 100 steps; 14 saves every 1000 and the last step, 20 kept"],
    ),
    ("D9", LLAMA + "stage2.sh", "", ["logs every 1 steps; 3 saves every 3000", "1 kept"]),
    (
        "D10",
        LLAMA + "stage2.sh",
        "",
        ["bf16: true", "seq_length: 8192", "recompute_granularity: full", "weight decay 0"],
    ),
    ("D14", "lora_2x4090/run.sh", "", ["445 warmup steps"]),
    (
        "D17",
        "cluster/slurm.sbatch",
        "",
        ["use_distributed_optimizer: true", "overlap_grad_reduce: true", "sequence_parallel: true"],
    ),
    (
        "D18",
        ONEVISION,
        "STAGE=single_image SIZE=72b",
        ["128 GPUs: tensor 8 x pipeline 4 x context 1 x data 4", "--nnodes 16"],
    ),
    ("D19", NEXT + "stage2.sh", "", ["8 GPUs"]),
    ("D19", "cluster/slurm.sbatch", "SLURM_JOB_NUM_NODES=8", ["64 GPUs", "localhost:29500"]),
    ("A9", "interleave/run.sh", "", ["9196 steps of 128", "mixed:0.5", "one_padded"]),
    ("A10", "video/run.sh", "", ["a video of 32 frames 6273", "1993 steps", "--frames-upbound 32"]),
    ("A11", "video/run.sh", "FRAMES=10", ["--frames-upbound 10"]),
    ("B13", "convert/run.sh", "", ["--to llava", "--to mm_projector", "--from llava", "--verify"]),
]


@pytest.mark.proves("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D18", "D19")
@pytest.mark.parametrize(
    "script, settings, words",
    [pytest.param(*row[1:], id=f"{row[0]}-{row[1]}-{row[2]}") for row in PUBLISHED],
)
def test_a_dry_run_prints_the_published_numbers(script, settings, words):
    said = dry_run(script, settings)
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    "script, settings, gibibytes",
    [
        ("lora_2x4090/run.sh", "", 48),
        (NEXT + "stage2.sh", "", 80),
        (LLAMA + "stage2.sh", "", 80),
        (ONEVISION, "STAGE=single_image SIZE=72b", 80),
    ],
)
def test_the_layouts_fit_by_their_estimate(script, settings, gibibytes):
    estimate = re.search(r"about (\d+) GiB on a GPU", dry_run(script, settings))
    assert int(estimate[1]) + 4 < gibibytes


@pytest.mark.parametrize("script", ["video/run.sh", "quickstart/run.sh"])
def test_a_dry_run_touches_nothing(tmp_path, script):
    copy = tmp_path / "copy"
    shutil.copytree(EXAMPLES, copy / "examples", ignore=shutil.ignore_patterns("out", "__pyc*"))
    before = sorted(copy.rglob("*"))
    done = subprocess.run(
        ["bash", copy / "examples" / script],
        env=environment(DRY_RUN="1", PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "600 steps" in done.stdout or script != "quickstart/run.sh"
    assert sorted(copy.rglob("*")) == before


def commands(folder: Path, **bodies: str) -> Path:
    """A folder of stand-ins for a scheduler's commands."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("preempted", [True, False])
def test_the_slurm_job_is_queued_again_only_when_it_was_stopped(tmp_path, preempted):
    """With stand-ins for Slurm's commands: srun waits for scancel's signal, then for a save."""
    log, started, stop = (tmp_path / name for name in ("log", "started", "stop"))
    waits = f"until [ -e {stop} ]; do sleep 0.05; done; sleep 0.3;" if preempted else ""
    stand_ins = commands(
        tmp_path / "bin",
        srun=f"touch {started}; {waits} echo saved >> {log}; exit 1",
        scancel=f'echo "scancel $*" >> {log}; touch {stop}',
        scontrol=f'[ "$1" = show ] && echo node0 || echo "scontrol $*" >> {log}',
    )
    job = subprocess.Popen(
        ["bash", EXAMPLES / "cluster/slurm.sbatch"],
        cwd=ROOT,
        env=environment(PATH=f"{stand_ins}:{os.environ['PATH']}", SLURM_JOB_ID="7"),
    )
    while not started.exists():
        time.sleep(0.02)
    if preempted:
        job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 1
    said = log.read_text().splitlines()
    assert said == (
        ["scancel --signal=TERM 7.0", "saved", "scontrol requeue 7"] if preempted else ["saved"]
    )


def test_the_sky_task_runs_the_script():
    task = yaml.safe_load((EXAMPLES / "cluster/sky.yaml").read_text())
    assert task["num_nodes"] == 4 and "bash examples/cluster/train.sh" in task["run"]
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True).returncode == 0


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """One set of tiny weights and pictures for all stories."""
    return tmp_path_factory.mktemp("toys")


def stories() -> list:
    """All under ``-m grid``; else the one whose day it is."""
    return [
        pytest.param(
            name,
            marks=[pytest.mark.grid, *([] if name == TODAYS else [pytest.mark.exhaustive])],
        )
        for name in STORIES
    ]


@pytest.mark.proves("D2", "D5")
@pytest.mark.parametrize("story", stories())
def test_a_story_runs_on_tiny_weights(story, toys, cpu_platform):
    for script in STORIES[story]:
        done = subprocess.run(
            ["bash", EXAMPLES / story / script],
            cwd=ROOT,
            env=environment(TOY="1", TOY_OUT=str(toys), OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        if story != "convert":
            assert re.search("step 3(/3|: saved)", done.stdout + done.stderr)
    output = toys / story
    exported = {"lora_2x4090": "peft", "cluster": "run", "onevision_0.5b_7b_72b": "stage1"}
    exported["quickstart"] = "exported"
    assert any((output / exported.get(story, "hf")).iterdir())
