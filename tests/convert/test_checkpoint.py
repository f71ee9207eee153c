import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_layouts import rewrite
from safetensors.torch import load_file, save_file
from tiny_checkpoints import tiny_llava_next

from megatron_llava.convert.checkpoint import export_hf, import_hf, load_state
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.verify import verify
from megatron_llava.convert.verify_logits import LOGITS_THRESHOLD, verify_logits

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
MODELS = [("llama", "clip", False), ("qwen2", "siglip", True), ("mistral", "clip", False)]


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: "-".join(map(str, model)))
def converted(request, tmp_path_factory, core_process):
    """(Hugging Face folder, root of the Megatron checkpoint made of it)."""
    text, vision, tied = request.param
    folder = tmp_path_factory.mktemp("convert")
    source = tiny_llava_next(folder / "hf", text, vision, tied=tied)
    core_process(import_hf, source, folder / "root")
    return source, folder / "root"


@pytest.fixture(scope="module")
def llama(tmp_path_factory, core_process):
    folder = tmp_path_factory.mktemp("llama")
    source = tiny_llava_next(folder / "hf", "llama", "clip")
    core_process(import_hf, source, folder / "root")
    return source, folder / "root"


def test_import_is_bitwise_and_computes_the_same(converted, core_process):
    source, root = converted
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert (root / "hf" / "tokenizer.json").exists()
    report = core_process(verify, root, source)
    assert report.covered[0] + report.passed_through[0] == len(HFReader(source).names())
    assert report.ignored == [0, 0]
    assert max(core_process(verify_logits, root, source).values()) <= LOGITS_THRESHOLD


def test_export_is_bitwise_and_loads_in_transformers(converted, core_process, tmp_path):
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

    source, root = converted
    target = tmp_path / "hf"
    core_process(export_hf, root, target)
    core_process(verify, root, target)
    before, after = HFReader(source), HFReader(target)
    assert after.layout == "hub" and after.names() == before.names()
    assert all(torch.equal(after.tensor(n), before.tensor(n)) for n in before.names())
    config = [json.loads((folder / "config.json").read_text()) for folder in (source, target)]
    assert config[0] == config[1]
    _, report = LlavaNextForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    LlavaNextProcessor.from_pretrained(target)


def test_export_in_bfloat16_and_shards(llama, core_process, tmp_path):
    source, root = llama
    target = tmp_path / "hf"
    core_process(export_hf, root, target, None, torch.bfloat16, 100_000)
    core_process(verify, root, target, None, torch.bfloat16)
    assert len(list(target.glob("model-*.safetensors"))) > 2
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="differ in 99 tensors"):
        core_process(verify, root, target)


def test_import_keeps_half_precision(core_process, tmp_path):
    source = tiny_llava_next(tmp_path / "hf", "llama", "clip", dtype=torch.float16)
    core_process(import_hf, source, tmp_path / "root")
    conversion = json.loads((tmp_path / "root" / "hf" / "conversion.json").read_text())
    assert conversion["params_dtype"] == "float16"
    core_process(verify, tmp_path / "root", source)


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_a_folder_has_one_dtype_when_its_weights_had_another(core_process, tmp_path, vision):
    """What is passed through follows, which an import would refuse otherwise."""
    source = tiny_llava_next(tmp_path / "hf", "llama", vision, dtype=torch.float16)
    core_process(import_hf, source, tmp_path / "root", None, torch.bfloat16)
    core_process(export_hf, tmp_path / "root", tmp_path / "back")
    core_process(verify, tmp_path / "root", tmp_path / "back")
    reader = HFReader(tmp_path / "back")
    assert {reader.dtype(name) for name in reader.names()} == {torch.bfloat16}
    core_process(import_hf, tmp_path / "back", tmp_path / "again")


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.1.mlp.up_proj.weight",
        "vision_tower.vision_model.post_layernorm.bias",
    ],
    ids=["trained", "passed-through"],
)
def test_a_weight_too_large_for_the_dtype_is_refused(llama, core_process, tmp_path, name):
    """It would be infinite, and as infinite on both sides of --verify."""
    source = rewrite(llama[0], tmp_path / "hf", "hub")
    tensors = load_file(source / "model.safetensors")
    tensors[name].view(-1)[3] = -1e5
    tensors["image_newline"][0] = torch.inf  # not made here: it stays what it is
    (source / "model.safetensors").unlink()
    save_file(tensors, source / "model.safetensors")
    said = rf"{name} holds -1e\+05, too much for float16, which ends at 6.55e\+04: take another"
    if "post_layernorm" not in name:
        with pytest.raises(ValueError, match=said):
            core_process(import_hf, source, tmp_path / "half", None, torch.float16)
    core_process(import_hf, source, tmp_path / "root")
    with pytest.raises(ValueError, match=said):
        core_process(export_hf, tmp_path / "root", tmp_path / "half", None, torch.float16)
    assert not (tmp_path / "half").exists()
    core_process(export_hf, tmp_path / "root", tmp_path / "bf16", None, torch.bfloat16)


def test_a_difference_of_one_bit_is_seen(llama, core_process, tmp_path):
    source, root = llama
    other = rewrite(source, tmp_path / "hf", "hub")
    path = other / "model.safetensors"
    tensors = load_file(path)
    tensors["image_newline"][0] = torch.nextafter(
        tensors["image_newline"][0], torch.tensor(torch.inf)
    )
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"differ in 1 tensors: .*image_newline"):
        core_process(verify, root, other)
    # A rounding step does not show in the logits; a shuffled projector does.
    weight = "multi_modal_projector.linear_2.weight"
    tensors[weight] = tensors[weight].roll(1, 0)
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(ValueError, match="logits differ by up to"):
        core_process(verify_logits, root, other)


@pytest.mark.proves("B13", "D20")
def test_two_tensor_parallel_ranks_and_back(llama, core_process, tmp_path):
    """Each rank holds what the rows say; what it saves, vocabulary padded, is exported."""
    source, root = llama
    torch.save(core_process(load_state, root, read_root_mapping(root)), tmp_path / "whole.pt")
    script = Path(__file__).parent / "resave_tensor_parallel.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [root, tmp_path / "whole.pt", tmp_path / "trained"]
    done = subprocess.run([*launch, script, *arguments], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    core_process(export_hf, tmp_path / "trained", tmp_path / "hf", 5)
    before, after = HFReader(source), HFReader(tmp_path / "hf")
    assert after.names() == before.names()
    unused = ("encoder.layers.2.", "post_layernorm")
    for name in before.names():
        trained = before.tensor(name) + (0.0 if any(part in name for part in unused) else 1.0)
        assert torch.equal(after.tensor(name), trained), name


def test_a_root_appears_only_when_complete(llama, core_process, tmp_path):
    source, root = llama
    with pytest.raises(ValueError, match="already exists"):
        core_process(import_hf, source, root)
    broken = rewrite(source, tmp_path / "hf", "hub")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated"):
        core_process(import_hf, broken, tmp_path / "root")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    with pytest.raises(ValueError, match="iter_0000007: no such checkpoint"):
        core_process(export_hf, root, tmp_path / "out", 7)
    with pytest.raises(ValueError, match="model.yaml: no such file"):
        core_process(export_hf, source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def tool(*arguments):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_the_command_line(llama, tmp_path):
    source, root = llama
    target = tmp_path / "hf"
    options = ("--load", root, "--save", target, "--verify")
    done = tool("--from", "megatron", "--to", "hf", *options)
    assert done.returncode == 0, done.stderr
    assert "covered              81           982,016" in done.stdout
    assert "logits of transformers and Megatron differ by at most" in done.stdout
    assert "3 images" in done.stdout
    again = tool("--from", "megatron", "--to", "hf", *options)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("convert_checkpoint.py: error: ")
    assert "already exists" in again.stderr and "Traceback" not in again.stderr


def test_arguments_that_contradict(tmp_path):
    step = ("--from", "hf", "--to", "megatron", "--ckpt-step", 1)
    done = tool(*step, "--load", tmp_path, "--save", tmp_path / "out")
    assert done.returncode == 2
    assert "error: --ckpt-step belongs to --from megatron" in done.stderr
    done = tool("--from", "hf", "--to", "hf", "--load", tmp_path, "--save", tmp_path / "out")
    assert "--from hf --to hf: one of the two, and not both, is megatron" in done.stderr
