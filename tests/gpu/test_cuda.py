"""What only a GPU can show; skipped, visibly, where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_process import run_python
from PIL import Image
from tiny_checkpoints import tiny_llava_next

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_equals_the_cpu(groups, causal):
    from megatron_llava.ops.attention import packed_attention

    generator = torch.Generator().manual_seed(0)
    lengths = [7, 120, 1, 64]
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    shapes = [(sum(lengths), heads, 64) for heads in (4, groups, groups)]
    reference = [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]
    upstream = torch.randn(sum(lengths), 4 * 64, generator=generator)

    def run(device, dtype):
        inputs = [t.to(device, dtype).detach().requires_grad_() for t in reference]
        output = packed_attention(
            *inputs, cu_seqlens.to(device), max(lengths), causal=causal, scale=0.125
        )
        gradients = torch.autograd.grad(output, inputs, upstream.to(device, dtype))
        return [t.float().cpu() for t in (output, *gradients)]

    for expected, found in zip(run("cpu", torch.float32), run("cuda", torch.bfloat16), strict=True):
        assert (found - expected).norm() < 2e-2 * expected.norm()
    for expected, found in zip(run("cpu", torch.float32), run("cuda", torch.float32), strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm()


def command(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A converted tiny checkpoint and a store of 32 samples."""
    folder = tmp_path_factory.mktemp("cuda")
    tiny_llava_next(folder / "hf", "llama", "clip")
    generator = np.random.default_rng(0)
    records = []
    for number in range(32):
        width, height = (int(side) for side in generator.integers(40, 180, 2))
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\nwhat is it?"},
            {"from": "gpt", "value": ("red", "blue cat")[number % 2]},
        ]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    convert = ["tools/convert_checkpoint.py", "--from", "hf", "--to", "megatron"]
    command(*convert, "--load", folder / "hf", "--save", folder / "megatron")
    preprocess = ["tools/preprocess_data.py", "--input", folder / "data.json"]
    preprocess += ["--image-folder", folder, "--tokenizer-model", folder / "hf"]
    command(*preprocess, "--conversation-template", "v1", "--output-prefix", folder / "store")
    return folder


def losses_of(log):
    """Of the steps; the first line of a log says how the run started."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["lm loss"] for line in lines if "lm loss" in line]


ENGINE_ALONE = ["--bf16", "--transformer-impl", "transformer_engine"]
# Its own attention needs a cuDNN that did not load on the machine that was at hand.
TRANSFORMER_ENGINE = [*ENGINE_ALONE, "--attention-backend", "local"]
FULL = ["--recompute-granularity", "full", "--recompute-method", "block"]
FULL += ["--recompute-num-layers", "1"]
FP8 = ["--fp8-format", "hybrid"]
AWARE = ["--bf16", "--use-distributed-optimizer", "--use-precision-aware-optimizer"]
OFFLOAD = [*AWARE, "--optimizer-cpu-offload"]
HALF = ["--optimizer-offload-fraction", "0.5", "--overlap-cpu-optimizer-d2h-h2d"]


@pytest.mark.proves("D10")
@pytest.mark.parametrize(
    "flags",
    [
        ["--bf16"],
        ["--bf16", "--recompute-activations"],
        ["--bf16", "--lora-rank", "8", "--lora-dropout", "0"],
        [],
        TRANSFORMER_ENGINE,
        ENGINE_ALONE,
        [*TRANSFORMER_ENGINE, *FP8],
        [*TRANSFORMER_ENGINE, *FP8, *FULL],
        [*TRANSFORMER_ENGINE, *FP8, "--fp8-recipe", "tensorwise", "--first-last-layers-bf16"],
        [*TRANSFORMER_ENGINE, *FP8, "--fp8-recipe", "blockwise"],
        ["--bf16", *FP8, "--fp8-emulation"],
        ["--bf16", "--torch-compile"],
        ["--tf32"],
        AWARE,
        [*AWARE, "--exp-avg-dtype", "bf16", "--exp-avg-sq-dtype", "bf16"],
        OFFLOAD,
        [*OFFLOAD, *HALF],
    ],
    ids=" ".join,
)
def test_training_on_one_gpu_stays_near_the_cpu(run_folder, tmp_path, flags):
    aware = "--use-precision-aware-optimizer" in flags
    if "transformer_engine" in flags or aware:
        pytest.importorskip("transformer_engine")
    gpu_only = ("--torch-compile", "--tf32")
    on_the_cpu = AWARE[:2] if aware else [flag for flag in flags if flag not in gpu_only]
    if "transformer_engine" in flags:
        on_the_cpu = ["--bf16", *FP8, "--fp8-emulation"] if "hybrid" in flags else ["--bf16"]
    losses = {}
    for device in ("cpu", "cuda"):
        log = tmp_path / f"{device}.jsonl"
        train = ["-m", "megatron_llava.train", "--device", device, "--log-file", log]
        train += ["--pretrained-checkpoint", run_folder / "megatron"]
        train += ["--data-path", run_folder / "store", "--seq-length", 512, "--train-iters", 4]
        train += ["--global-batch-size", 2, "--lr", "1e-3", "--log-interval", 1]
        command(*train, *(flags if device == "cuda" else on_the_cpu))
        losses[device] = losses_of(log)
    assert len(losses["cuda"]) == 4
    tolerance = 3e-2 if flags else 1e-3
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)


@pytest.mark.proves("D10")
def test_tf32_rounds_operands():
    code = """
        import torch
        from megatron_llava.platform.device import set_up_device

        for tf32 in (False, True):
            device = set_up_device("cuda", tf32=tf32)
            torch.manual_seed(0)
            one, other = torch.randn(2, 512, 512, device=device)
            exact = one.double() @ other.double()
            print(float((one @ other - exact).norm() / exact.norm()))
    """
    exact, rounded = map(float, run_python(code).split())
    assert exact < 1e-6 and 1e-4 < rounded < 1e-2


@pytest.mark.parametrize(
    "more",
    [
        ["--bf16"],
        AWARE[:2],
        AWARE,
        [*AWARE, "--dist-ckpt-optim-fully-reshardable"],
        OFFLOAD,
        [*OFFLOAD, *HALF],
        TRANSFORMER_ENGINE,
        [*TRANSFORMER_ENGINE, *FP8],
    ],
    ids=" ".join,
)
def test_a_checkpoint_of_the_gpu_resumes_and_answers(run_folder, tmp_path, more):
    if len(more) > 2:
        pytest.importorskip("transformer_engine")
    log = tmp_path / "log.jsonl"
    train = ["-m", "megatron_llava.train", "--device", "cuda", "--train-iters", 4, "--log-interval"]
    train += [1, "--pretrained-checkpoint", run_folder / "megatron", "--seq-length", 512, *more]
    train += ["--data-path", run_folder / "store", "--lr", "1e-3", "--log-file", log, "--save"]
    command(*train, tmp_path / "whole", "--save-interval", 4)
    whole = losses_of(log)
    log.unlink()
    train += [tmp_path / "run", "--load", tmp_path / "run", "--save-interval", 2]
    command(*train, "--exit-interval", 2)
    assert "resumed" in command(*train)
    assert losses_of(log) == pytest.approx(whole, rel=1e-3)
    evaluate = ["tools/evaluate.py", "--device", "cuda", "--bf16", "--load", tmp_path / "run"]
    evaluate += ["--input", run_folder / "data.json", "--image-folder", run_folder]
    said = command(*evaluate, "--conversation-template", "v1", "--max-new-tokens", 4)
    assert "32 questions" in said


@pytest.mark.proves("E3")
@pytest.mark.parametrize("flags", [["--vision-on-cpu"], ["--torch-compile"]], ids=" ".join)
def test_answers_are_those_without_the_flag(run_folder, tmp_path, flags):
    evaluate = ["tools/evaluate.py", "--device", "cuda", "--load", run_folder / "megatron"]
    evaluate += ["--input", run_folder / "data.json", "--image-folder", run_folder]
    evaluate += ["--conversation-template", "v1", "--max-new-tokens", 4, "--output"]
    for name, more in (("expected", []), ("found", flags)):
        command(*evaluate, tmp_path / name, *more)
    assert (tmp_path / "found").read_text() == (tmp_path / "expected").read_text()


@pytest.mark.proves("E3")
def test_answers_in_4_bits_are_those_of_the_cpu(run_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    evaluate = ["tools/evaluate.py", "--load-in-4bit", "--load", run_folder / "megatron"]
    evaluate += ["--input", run_folder / "data.json", "--image-folder", run_folder]
    evaluate += ["--conversation-template", "v1", "--max-new-tokens", 4]
    for device in ("cpu", "cuda"):
        command(*evaluate, "--device", device, "--output", tmp_path / device)
    assert (tmp_path / "cuda").read_text() == (tmp_path / "cpu").read_text()


def test_the_snapshot_of_memory_that_ran_out_has_what_was_allocated(tmp_path):
    import pickle

    from megatron_llava.platform.memory_history import memory_history

    file = tmp_path / "snapshot.pickle"
    with pytest.raises(torch.OutOfMemoryError), memory_history(file):
        held = torch.zeros(3 * 2**20, dtype=torch.uint8, device="cuda")
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    snapshot = pickle.loads(file.read_bytes())
    sizes = [b["size"] for segment in snapshot["segments"] for b in segment["blocks"]]
    assert held.numel() in sizes


def test_steps_are_marked_for_nsight():
    from megatron_llava.platform.profile_window import ProfileWindow

    window = ProfileWindow(1, 2, None)
    for done in range(4):
        window.advance_to(done)
        torch.zeros(3, device="cuda").add_(1)
        assert (window._running is not None) == (done == 1)
    window.close()


def test_parts_are_timed_by_the_clock_of_the_device():
    from megatron_llava.training.step_times import COMPUTE, DATA, CudaStepTimes

    matrix = torch.randn(4096, 4096, device="cuda")
    times = CudaStepTimes()
    for _ in range(2):
        times.begin_step()
        times.mark(COMPUTE)
        for _ in range(50):
            matrix = matrix @ matrix / 64
        times.mark(DATA)
        times.end_step()
    seconds = times.take()
    assert seconds[COMPUTE] > 0.01 > 10 * seconds[DATA]
    assert not any(times.take().values())
