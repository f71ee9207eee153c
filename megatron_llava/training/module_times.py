"""Marks where a model's modules begin and end, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from megatron_llava.models.llava import LlavaModel
from megatron_llava.training.step_times import COMPUTE, LANGUAGE, PROJECTOR, TOWER, StepTimes


def watch_modules(model: LlavaModel, times: StepTimes) -> None:
    """Take the tower, the projector and the language model out of ``COMPUTE``.

    A module's backward begins with the gradient of its output and ends with that of its input; the
    recomputation of its layers lies between. What remains is the visual packing, the loss, and what
    ranks send each other of features.
    """
    language = model.language_model
    parts = [(language.decoder, LANGUAGE)]
    if model.pre_process:
        parts += [(model.vision_model, TOWER), (model.vision_projection, PROJECTOR)]
        parts.append((language.embedding.word_embeddings, LANGUAGE))
    if model.post_process:
        parts.append((language.output_layer, LANGUAGE))
    for module, part in parts:
        module.register_forward_pre_hook(partial(_begins, times, part), with_kwargs=True)
        module.register_forward_hook(partial(_ends, times, part))


def _begins(times: StepTimes, part: str, module: Any, args: Any, kwargs: Any) -> None:
    for value in (*args, *kwargs.values()):
        _in_backward(times, COMPUTE, value)
    times.mark(part)


def _ends(times: StepTimes, part: str, module: Any, args: Any, output: Any) -> None:
    times.mark(COMPUTE)
    _in_backward(times, part, output[0] if isinstance(output, tuple) else output)


def _in_backward(times: StepTimes, part: str, value: Any) -> None:
    """Mark a part when the gradient of a value is there."""
    if isinstance(value, torch.Tensor) and value.requires_grad and value.grad_fn is not None:
        value.register_hook(lambda _: times.mark(part))
