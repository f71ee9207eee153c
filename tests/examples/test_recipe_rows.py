"""One case for each published recipe: flags as its seed has them, and what a dry run makes of them.

The scripts of examples/ are held to the same numbers in test_examples.py.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_llava.parallel.checkpoint_directory import iteration_directory, remove_oldest

ROOT = Path(__file__).parents[2]
NEXT, LLAMA, ONEVISION = "llava-next-vicuna-7b", "llava-next-llama-3-8b", "llava-onevision-qwen2-7b"
CLIMB = "--lr-warmup-fraction=0.03"
TOWER = "--mm-vision-tower-lr=2e-6"
PROJECTOR = "--mm-tunable-parts=mm_mlp_adapter"
NO_TOWER = "--mm-tunable-parts=mm_mlp_adapter,mm_language_model"
LORA = ("--lora-rank=32", "--lora-alpha=64", "--lora-dropout=0.05")
SUBSET = (
    "--image-aspect-ratio=nobase",
    "--image-grid-pinpoints=(1x1),...,(6x6)",
    "--seq-length=32768",
)
FIVE_PATCHES = (
    "--image-grid-pinpoints=max_patches=5",
    "--grid-choice=aspect_ratio",
    "--mm-patch-merge-type=flat",
)
EVERYTHING = "learn (mm_mlp_adapter, mm_vision_tower, mm_language_model)"


@dataclass(frozen=True)
class Recipe:
    """A row: a model, GPUs, samples and their batch, its flags, and words that are printed."""

    row: str
    model: str
    gpus: int
    samples: int
    batch: int
    flags: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def steps(self) -> int:
        return -(-self.samples // self.batch)


def recipe(row, model, gpus, samples, batch, flags, *words) -> Recipe:
    return Recipe(row, model, gpus, samples, batch, tuple(flags), words)


RECIPES = [
    recipe(
        *("D1", NEXT, 8, 558_000, 256, [PROJECTOR, "--lr=1e-3", CLIMB]),
        *("2180 steps of 256 samples", "lr 0.001, 66 warmup steps, then cosine, weight decay 0"),
        "of which 21.0 M learn (mm_mlp_adapter)",
    ),
    recipe(
        *("D1", NEXT, 8, 558_000, 256, [PROJECTOR, "--lr=1e-3", "--lr-warmup-iters=2000"]),
        "lr 0.001, 2000 warmup steps",
    ),
    recipe(
        *("D2", NEXT, 8, 118_000, 64, ["--lr=2e-5", TOWER, CLIMB]),
        *("1844 steps of 64 samples", EVERYTHING, "pretrained_checkpoint: stage1"),
    ),
    recipe(
        *("D2", ONEVISION, 32, 4_000_000, 256, ["--lr=1e-5", TOWER, CLIMB]),
        *("15625 steps of 256 samples = 32 data-parallel ranks x 8", EVERYTHING),
    ),
    recipe(
        *("D3", LLAMA, 16, 747_712, 64, ["--lr=1e-5", TOWER, CLIMB]),
        "lr 1e-05, tower 2e-06, 351 warmup steps, then cosine, weight decay 0",
    ),
    recipe(
        *("D3", NEXT, 8, 779_289, 64, ["--lr=2e-5", TOWER, CLIMB]),
        *("lr 2e-05, tower 2e-06, 366 warmup steps", EVERYTHING),
    ),
    recipe(
        *("D4", NEXT, 8, 157_712, 128, [NO_TOWER, "--lr=2e-5", CLIMB]),
        *("1233 steps of 128", "learn (mm_mlp_adapter, mm_language_model)", "37 warmup steps"),
    ),
    recipe(
        *("D4", NEXT, 32, 100_000, 64, ["--lr=2e-5", CLIMB, *FIVE_PATCHES]),
        *("1563 steps of 64 samples = 32 data-parallel ranks x 2", EVERYTHING),
    ),
    recipe(
        *("D5", NEXT, 8, 747_712, 64, ["--mm-tunable-parts=mm_vision_tower", "--lr=2e-6", CLIMB]),
        "learn (mm_vision_tower)",
    ),
    recipe(
        *("D6", ONEVISION, 2, 474_080, 32, [*LORA, *SUBSET, "--lr=1e-5", CLIMB]),
        *("lora_rank: 32", "lora_alpha: 64", "lora_dropout: 0.05", "lr 1e-05"),
        "M learn and adapters of rank 32 (mm_mlp_adapter, mm_language_model)",
    ),
    recipe(
        *("D7", ONEVISION, 2, 474_080, 32, [*LORA, *SUBSET, "--lr=1e-5", CLIMB]),
        "14815 steps of 32 samples = 2 data-parallel ranks x 16: 474080 in all",
        "445 warmup steps",
    ),
    recipe(
        *("D8", LLAMA, 16, 747_712, 64, ["--lr=1e-5", TOWER, CLIMB]),
        "11683 steps of 64 samples = 16 data-parallel ranks x 4: 747712 in all",
    ),
    recipe(
        *("D9", ONEVISION, 2, 474_080, 32),
        [*LORA, *SUBSET, "--lr=1e-5", "--log-interval=100", "--save-total-limit=20"],
        "logs every 100 steps; 14 saves every 1000 and the last step, 20 kept",
    ),
    recipe(
        *("D9", LLAMA, 16, 747_712, 64),
        ["--lr=1e-5", "--log-interval=1", "--save-interval=3000", "--save-total-limit=1"]
        + ["--drop-last"],
        "drop_last: true",
        "logs every 1 steps; 3 saves every 3000 and the last step, 1 kept",
    ),
    recipe(
        *("D10", LLAMA, 16, 747_712, 64, ["--lr=1e-5", "--seq-length=8192", CLIMB]),
        *("bf16: true", "seq_length: 8192", "recompute_granularity: full", "weight decay 0"),
    ),
    recipe(
        *("D14", ONEVISION, 2, 474_080, 32, [*LORA, *SUBSET, "--lr=1e-5", CLIMB]),
        "445 warmup steps",
    ),
    recipe(
        *("D14", ONEVISION, 2, 474_080, 32),
        [*LORA, *SUBSET, "--lr=1e-5", "--lr-warmup-iters=444"],
        "444 warmup steps",
    ),
    recipe(
        *("D17", NEXT, 8, 779_289, 64),
        ["--lr=2e-5", "--use-distributed-optimizer", "--overlap-grad-reduce", "--fp8-hybrid"]
        + ["--transformer-impl=transformer_engine", "--attention-backend=fused"],
        *("use_distributed_optimizer: true", "overlap_grad_reduce: true", "fp8_format: hybrid"),
        *("recompute_granularity: full", "attention_backend: fused"),
    ),
    recipe(
        *("D18", "llava-onevision-qwen2-72b", 128, 3_200_000, 256),
        ["--lr=1e-5", "--tensor-model-parallel-size=8", "--pipeline-model-parallel-size=4"]
        + ["--sequence-parallel", "--use-distributed-optimizer"],
        "128 GPUs: tensor 8 x pipeline 4 x context 1 x data 4",
    ),
    recipe(
        *("D19", "llava-next-qwen1.5-72b", 128, 790_000, 64),
        ["--lr=1e-5", "--tensor-model-parallel-size=8"],
        *("128 GPUs: tensor 8", "12344 steps of 64 samples = 16 data-parallel ranks x 4"),
    ),
]
OTHER_ROWS = {"D11", "D12", "D13", "D15", "D16", "D20"}
"""Of part D, what is no recipe: losses, precision, guards and what an export keeps."""


@pytest.fixture(scope="module")
def dry_run():
    spec = importlib.util.spec_from_file_location("dry_run", ROOT / "examples" / "dry_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.proves("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D14", "D17")
@pytest.mark.proves("D18", "D19")
@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, id=f"{recipe.row}-{n}") for n, recipe in enumerate(RECIPES)]
)
def test_a_dry_run_of_the_recipe(dry_run, capsys, recipe):
    nodes = max(1, recipe.gpus // 8)
    dry_run(
        [
            *(f"--nnodes={nodes}", f"--nproc-per-node={recipe.gpus // nodes}", "-m"),
            *("megatron_llava.train", f"--model={recipe.model}", "--data-path=store", "--bf16"),
            *("--load=run", "--save=run", "--save-interval=1000", "--seq-length=16384"),
            *("--pretrained-checkpoint=stage1", "--weight-decay=0", "--lr-decay-style=cosine"),
            *("--packing-window=1", f"--global-batch-size={recipe.batch}"),
            *("--recompute-granularity=full", "--recompute-method=uniform"),
            *("--recompute-num-layers=1", f"--train-iters={recipe.steps}", *recipe.flags),
        ]
    )
    said = capsys.readouterr().out
    for words in recipe.words:
        assert words in said, said


def test_every_recipe_of_part_d_has_a_case():
    rows = {f"D{number}" for number in range(1, 21)}
    assert {recipe.row for recipe in RECIPES} == rows - OTHER_ROWS


@pytest.mark.proves("D9")
@pytest.mark.parametrize(
    ("steps", "interval", "keep", "left"),
    [
        (14_815, 1000, 20, [*range(1000, 14_001, 1000), 14_815]),
        (14_815, 1000, 3, [13_000, 14_000, 14_815]),
        (11_683, 3000, 1, [11_683]),
    ],
)
def test_the_newest_saves_of_a_run_stay(tmp_path, steps, interval, keep, left):
    for step in [*range(interval, steps, interval), steps]:
        iteration_directory(tmp_path, step).mkdir()
        remove_oldest(tmp_path, step, keep)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == left
