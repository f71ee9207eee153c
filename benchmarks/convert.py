"""How long a conversion there and back takes, and how much memory, against a plain copy.

    python benchmarks/convert.py --folder /scratch --output benchmarks/results/convert.md

Makes a LLaVA-NeXT checkpoint of Vicuna-7B and CLIP-L/336 with random bf16 weights, shard by shard,
then, each in a process of its own: a plain copy of its weights; HF to Megatron; Megatron to HF; the
comparison of all tensors; and loading and saving it with transformers. Needs 4.2 times the
checkpoint's 14.1 GB on the disk. Files that were written are on the disk before a clock stops, and
files that are read are not in memory when it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report_header import header

from megatron_llava.convert.hf_defaults import CLIP_L_336

SEED = 7
CHUNK = 16 * 2**20
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vicuna-7b": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
        CLIP_L_336 | {"projection_dim": 768},
    ),
    "small": (
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
        {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 64,
        },
    ),
}
PROCESSOR = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


class RandomTensors:
    """The tensors of a model, drawn when they are asked for."""

    def __init__(self, mapping: dict[str, Any]) -> None:
        from megatron_llava.convert.convert import expected_hf_shapes
        from megatron_llava.convert.families import table

        expected, optional = expected_hf_shapes(table(mapping))
        self._shapes = {n: s for n, s in expected.items() if n not in optional and s is not None}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16

    def tensor(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED + self.names().index(name))
        # 16 random bits with an exponent that cannot be an infinity: fast, and no two rows equal.
        bits = torch.randint(
            -(2**15), 2**15, self.shape(name), dtype=torch.int16, generator=generator
        )
        return (bits & ~0x4000).view(torch.bfloat16)


def make(folder: Path, model: str) -> None:
    """A LLaVA-NeXT folder with random weights, written shard by shard."""
    from megatron_llava.convert.hf_config import mapping_from_hf
    from megatron_llava.convert.hf_writer import write_hf
    from megatron_llava.convert.journal import Journal

    text, vision = MODELS[model]
    config = {
        "model_type": "llava_next",
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_token_index": 32000,
        "text_config": text,
        "vision_config": vision,
        "dtype": "bfloat16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    mapping = mapping_from_hf(config, PROCESSOR)
    mapping |= {"untie_embeddings_and_output_weights": True, "hf_stores_tied_output_weight": False}
    write_hf(folder, RandomTensors(mapping), Journal(folder, {}))
    (folder / ".journal.json").unlink()


def copy(source: Path, target: Path) -> None:
    """A plain copy of the weights."""
    target.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as read, (target / path.name).open("wb") as written:
            shutil.copyfileobj(read, written, CHUNK)


def with_transformers(source: Path, target: Path) -> None:
    """Load and save with transformers."""
    from transformers import LlavaNextForConditionalGeneration

    model = LlavaNextForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(target)


def to_megatron(source: Path, target: Path) -> None:
    """HF to Megatron."""
    from megatron_llava.convert.checkpoint import import_hf

    import_hf(source, target)


def to_hf(source: Path, target: Path) -> None:
    """Megatron to HF."""
    from megatron_llava.convert.checkpoint import export_hf

    export_hf(source, target)


def compare(source: Path, target: Path) -> None:
    """Every tensor of both."""
    from megatron_llava.convert.verify import verify

    verify(source, target)


STAGES: dict[str, Callable[[Path, Path], None]] = {
    "copy": copy,
    "to_megatron": to_megatron,
    "to_hf": to_hf,
    "compare": compare,
    "transformers": with_transformers,
}


def run_stage(name: str, source: Path, target: Path) -> None:
    """One stage in this process; prints its seconds and its peak resident memory."""
    import megatron_llava.convert.checkpoint  # noqa: F401 - imports are no part of the time

    for folder in (source, target):
        for path in folder.rglob("*") if folder.exists() else ():
            if path.is_file():
                _forget(path)
    started = time.perf_counter()
    STAGES[name](source, target)
    for path in target.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def _forget(path: Path) -> None:
    """Have the kernel drop the pages of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(name: str, source: Path, target: Path) -> dict[str, float]:
    """Run a stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", name, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", default=".", help="where to make the checkpoints; removed after"
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="vicuna-7b")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--output", help="file to write the report to as well")
    parser.add_argument("--stage", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="one stage")
    arguments = parser.parse_args()
    if arguments.stage:
        name, source, target = arguments.stage
        run_stage(name, Path(source), Path(target))
        return
    work = Path(arguments.folder).resolve() / "convert-benchmark"
    work.mkdir(parents=True)
    try:
        report = "\n".join([*header(), "", *table(work, arguments)])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(report)
    if arguments.output:
        Path(arguments.output).write_text(report + "\n")


def table(work: Path, arguments: argparse.Namespace) -> list[str]:
    """Run all stages; lines of the report."""
    source, root, back = work / "hf", work / "root", work / "back"
    make(source, arguments.model)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    results = {"copy": measure("copy", source, work / "copy")}
    shutil.rmtree(work / "copy")
    results["to_megatron"] = measure("to_megatron", source, root)
    results["to_hf"] = measure("to_hf", root, back)
    results["compare"] = measure("compare", root, source)
    shutil.rmtree(root)
    shutil.rmtree(back)
    if not arguments.without_transformers:
        results["transformers"] = measure("transformers", source, back)
    base = results["copy"]["seconds"]
    both = results["to_megatron"]["seconds"] + results["to_hf"]["seconds"]
    names = {
        "copy": "plain copy",
        "to_megatron": "HF to Megatron",
        "to_hf": "Megatron to HF",
        "compare": "comparison of every tensor",
        "transformers": "transformers: load and save",
    }
    lines = [
        f"{arguments.model}: {size / 1e9:.1f} GB of weights",
        "",
        "| | seconds | of a copy | peak resident memory |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {names[name]} | {result['seconds']:.1f} | {result['seconds'] / base:.2f} | "
        f"{result['peak_bytes'] / 2**30:.2f} GiB |"
        for name, result in results.items()
    ]
    return [*lines, "", f"There and back: {both:.1f} s, {both / base:.2f} times a plain copy."]


if __name__ == "__main__":
    main()
