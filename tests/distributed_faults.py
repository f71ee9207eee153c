"""Jobs that train with something going wrong at a known place, for the pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from distributed_jobs import Recorder, train

NAN = float("nan")


@contextmanager
def spoilt_forward(kind: str, rank: int, microbatches: tuple[int, ...]) -> Iterator[None]:
    """Make the output (or its gradient) of some forward passes on one rank a NaN, or large.

    Args:
        kind: "loss", "gradient", or "spike", which makes losses a hundred times what they are.
        microbatches: which calls of the model, counted from 0 over the whole run.
    """
    from megatron_llava.models.llava import LlavaModel

    original, calls = LlavaModel.forward, iter(range(10**6))

    def forward(self: Any, batch: Any) -> torch.Tensor:
        output = original(self, batch)
        if next(calls) not in microbatches or torch.distributed.get_rank() != rank:
            return output
        if kind != "gradient":
            return output * (NAN if kind == "loss" else 100.0)
        output.register_hook(lambda gradient: gradient * NAN)
        return output

    LlavaModel.forward = forward
    try:
        yield
    finally:
        LlavaModel.forward = original


def train_spoilt(
    arguments: list[str], kind: str, rank: int, microbatches: tuple[int, ...]
) -> dict[str, Any]:
    """Train with ``spoilt_forward``.

    Returns:
        What the recorder holds, the error that ended the run, and where none did this rank's
        parameters as "shards" and the samples of each pack of the run.
    """
    from megatron_llava.config.cli import parse_args
    from megatron_llava.parallel.model_shards import model_shards
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer
    from megatron_llava.training.skipping import TrainingDiverged

    config = prepare(parse_args([*arguments, "--log-interval", "1"]))
    recorder = Recorder()
    result: dict[str, Any] = {"error": None}
    try:
        with (
            spoilt_forward(kind, rank, microbatches),
            open_trainer(config, torch.device("cpu"), recorder) as trainer,
        ):
            trainer.run()
            result["shards"] = model_shards(trainer.models)
    except TrainingDiverged as error:
        return {**vars(recorder), "error": str(error)}
    result["samples"] = [trainer.source.samples_of([pack]) for pack in range(20)]
    result["samples of step 3"] = trainer.source.samples_of(range(8, 12))
    return {**vars(recorder), **result}


def train_slowly(arguments: list[str], rank: int, seconds: float, where: str) -> dict[str, Any]:
    """Train as ``train`` does, with each microbatch taking longer on one rank.

    Args:
        where: "forward" or "backward" of the model, or "data".
    """
    from megatron_llava.models.llava import LlavaModel
    from megatron_llava.training.batches import BatchSource

    slow, forward, send = torch.distributed.get_rank() == rank, LlavaModel.forward, "_send_tiles"
    original = getattr(BatchSource, send)

    def wait(kind: str) -> None:
        if slow and kind == where:
            time.sleep(seconds)

    def slow_forward(self: Any, batch: Any) -> torch.Tensor:
        wait("forward")
        output = forward(self, batch)
        if output.requires_grad:
            output.register_hook(lambda _: wait("backward"))
        # What is returned has its gradient before that wait.
        return output * 1

    def slow_send(self: Any, *args: Any) -> Any:
        wait("data")
        return original(self, *args)

    with (
        patch.object(LlavaModel, "forward", slow_forward),
        patch.object(BatchSource, send, slow_send),
    ):
        return train(arguments)


def train_with_few_labels(arguments: list[str]) -> dict[str, Any]:
    """Train as ``train`` does, with the labels of two of three samples of every store left out."""
    from megatron_llava.data.sample import Sample
    from megatron_llava.data.store import Store

    original = Store.load

    def load(self: Store, index: int, **how: Any) -> Sample:
        sample = original(self, index, **how)
        if index % 3 == 1:
            return sample
        return replace(sample, label_mask=np.zeros_like(sample.label_mask))

    # Workers of the data loader are forked, and so have it too.
    with patch.object(Store, "load", load):
        return train(arguments)


def save_spoilt_weights(arguments: list[str], rank: int) -> str:
    """Save a model with a weight that is no number on one rank; returns the error."""
    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer
    from megatron_llava.training.skipping import TrainingDiverged

    config = prepare(parse_args(arguments))
    with open_trainer(config, torch.device("cpu"), Recorder()) as trainer:
        if torch.distributed.get_rank() == rank:
            next(trainer.models[0].parameters()).data[0] = NAN
        try:
            trainer.save()
        except TrainingDiverged as error:
            return str(error)
    return "saved"
