"""Jobs that tests send to the pool: they run on every rank of a fresh gloo world."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch


def import_checkpoint(hf: Path, root: Path) -> None:
    """Convert a Hugging Face folder in a process of its own kind: a world of one."""
    from megatron_llava.convert.checkpoint import import_hf
    from megatron_llava.platform.device import leave_process_group

    leave_process_group()
    import_hf(hf, root)


def config_at(root: Path, **layout: Any) -> Any:
    """The RunConfig of a converted checkpoint on the CPU, at a parallel layout."""
    from megatron_llava.config.model_yaml import fill_model_from
    from megatron_llava.config.run import RunConfig
    from megatron_llava.config.yaml_file import read_yaml_mapping

    config = RunConfig().with_values({"device": "cpu", **layout}, "flag")
    path = str(root / "model.yaml")
    return fill_model_from(config, read_yaml_mapping(path), path)


def preprocess_records(records: list[dict], folder: Path, tokenizer: Path, prefix: Path) -> None:
    """Write LLaVA records as a store."""
    from megatron_llava.data.preprocess import PreprocessSettings, preprocess

    source = prefix.with_suffix(".input.json")
    source.write_text(json.dumps(records))
    settings = PreprocessSettings(
        input=source,
        image_folder=folder,
        tokenizer_model=str(tokenizer),
        conversation_template="v1",
        output_prefix=prefix,
    )
    preprocess(settings)


class Recorder:
    """A reporter that keeps what the loop tells it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[float] = []
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def advance_to(self, iteration: int) -> None:
        pass

    def training(self, iteration: int, values: dict[str, float], interval, device) -> None:
        counts = {"samples": interval.samples, "kinds": interval.kinds, **interval.details}
        self.steps.append({"iteration": iteration, **values, **counts})

    def validation(self, iteration: int, loss: float, tokens: int, seconds: float) -> None:
        self.validations.append(loss)


def train(
    arguments: list[str], *, with_shards: bool = False, log_interval: int = 1
) -> dict[str, Any]:
    """Run the trainer with a command line.

    Returns:
        What the recorder holds, and this rank's parameters as "shards" if asked for.
    """
    from megatron_llava.config.cli import parse_args
    from megatron_llava.parallel.model_shards import model_shards
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    config = prepare(parse_args([*arguments, f"--log-interval={log_interval}"]))
    recorder = Recorder()
    with open_trainer(config, torch.device("cpu"), recorder) as trainer:
        trainer.run()
        shards = model_shards(trainer.models) if with_shards else []
    return {**vars(recorder), "shards": shards}


def train_checking_rows(arguments: list[str], store: Path) -> dict[str, Any]:
    """``train`` where ``loss_functions.checked`` finds the labels in the store."""
    import loss_functions

    from megatron_llava.data.store import Store

    loss_functions.STORE = Store(store)
    return train(arguments)


def first_origins(arguments: list[str]) -> Any:
    """``loss_origins`` of the first microbatch of a run."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    with open_trainer(prepare(parse_args(arguments)), torch.device("cpu"), Recorder()) as trainer:
        source = trainer.source
        origins = next(source.step(source.step_rows())).loss_origins
        return None if origins is None else origins.tolist()


def record(
    arguments: list[str], folder: Path, *, spoilt: str | None = None, rank: int = 0, step: int = 2
) -> None:
    """Run the trainer and record every step, as tools/compare_layouts.py does.

    Args:
        spoilt: a parameter that is changed on ``rank`` after ``step``, as a broken layout would.
    """
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.record import StepRecorder, record_training

    original = StepRecorder.advance_to

    def advance_to(recorder: StepRecorder, iteration: int) -> None:
        if iteration == step and torch.distributed.get_rank() == rank:
            models = recorder.trainer.models
            parameters = {n: p for model in models for n, p in model.named_parameters()}
            parameters[spoilt].data[0] += 0.1
        original(recorder, iteration)

    config = prepare(parse_args([*arguments, "--log-interval", "1"]))
    with patch.object(StepRecorder, "advance_to", advance_to if spoilt else original):
        record_training(config, torch.device("cpu"), folder)


def train_until_disk_is_full(arguments: list[str], limit_bytes: int) -> str:
    """Train with no file allowed to grow beyond a limit; returns the error that ended it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Output may go to a file that has grown beyond the limit already.
    saved = [os.dup(stream) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        train(arguments)
    except ValueError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for stream, original in zip((1, 2), saved, strict=True):
            os.dup2(original, stream)
            os.close(original)
        os.close(nowhere)
    return ""


def train_without_room(arguments: list[str]) -> str:
    """Train where the disk says that seven bytes are free; returns the error that ended it."""
    original = shutil.disk_usage
    shutil.disk_usage = lambda path: original(path)._replace(free=7)
    try:
        train(arguments)
    except ValueError as error:
        return str(error)
    finally:
        shutil.disk_usage = original
    return ""


def hang_on_rank(rank: int) -> int:
    """Sleep for ever on one rank, return at once on the others."""
    if torch.distributed.get_rank() == rank:
        time.sleep(3600)
    return torch.distributed.get_rank()


def sum_of_ranks() -> int:
    """An all-reduce."""
    total = torch.tensor(torch.distributed.get_rank())
    torch.distributed.all_reduce(total)
    return int(total)


def die_on_rank(rank: int) -> None:
    """End the process of one rank as a crash would."""
    if torch.distributed.get_rank() == rank:
        os._exit(3)


def number_of_threads() -> int:
    """Threads of this rank's process, those of its process group included."""
    return len(os.listdir("/proc/self/task"))


def make_groups() -> None:
    """Core's process groups, in a circle of references, as a model has them."""
    from megatron.core import parallel_state

    from megatron_llava.config.parallel import ParallelConfig
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups

    initialize_groups(ParallelConfig(device="cpu", tensor_model_parallel_size=2))
    circle: list[Any] = [parallel_state.get_tensor_model_parallel_group()]
    circle.append(circle)
    destroy_groups()


def draws(sizes: dict[str, int]) -> dict[str, Any]:
    """What a rank draws for weights, and for dropout outside and inside core's tracker."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    from megatron_llava.config.parallel import ParallelConfig
    from megatron_llava.parallel.groups import (
        destroy_groups,
        initialize_groups,
        seed_dropout,
        set_seed,
    )

    initialize_groups(ParallelConfig(device="cpu", **sizes))
    try:
        set_seed(5)
        weights = torch.rand(8).tolist()
        seed_dropout(5)
        with get_cuda_rng_tracker().fork():
            tracked = torch.rand(8).tolist()
        return {
            "weights": weights,
            "dropout": torch.rand(8).tolist(),
            "tracked": tracked,
            "stage": parallel_state.get_pipeline_model_parallel_rank(),
            "tensor": parallel_state.get_tensor_model_parallel_rank(),
        }
    finally:
        destroy_groups()


def draws_of_trainer(arguments: list[str]) -> list[float]:
    """What a rank draws next when its trainer has been built."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    with open_trainer(prepare(parse_args(arguments)), torch.device("cpu"), Recorder()):
        return torch.rand(8).tolist()
