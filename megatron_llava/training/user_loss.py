"""A loss of the user's own: what --loss-function is given, and what it may return.

Shape suffix: L loss rows of a microbatch on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_llava.config.run import RunConfig
from megatron_llava.config.user_function import load_function
from megatron_llava.data.packed_batch import TensorBatch

_FLAG = "--loss-function"


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """The loss rows of a microbatch; under context parallelism those that this rank holds.

    Rows of a sample are in the order of its text, samples in that of the pack. Every
    tensor-parallel rank of the last pipeline stage has the same ones.
    """

    log_probabilities: torch.Tensor
    """float32 [L], of the labels, over the whole vocabulary; differentiable."""

    labels: torch.Tensor
    """int64 [L], the supervised tokens."""

    samples: torch.Tensor
    """int64 [L], the sample of each row: its number in the store of --data-path."""

    positions: torch.Tensor
    """int64 [L], the place of each row among all loss rows of its sample, from 0."""


class UserLoss:
    """The function that --loss-function names.

    Raises:
        ValueError: there is no such function; one line naming the flag.
    """

    def __init__(self, name: str) -> None:
        self._named = f"{_FLAG} {name}"
        self._function = load_function(_FLAG, name)

    def __call__(self, batch: TensorBatch, losses_L: torch.Tensor) -> torch.Tensor:
        """The loss of each row, float32 [L], with its gradient.

        Args:
            batch: a pack, or this rank's share of it, with ``loss_origins`` and L > 0.
            losses_L: float32, the cross entropy of each row. The function is given its negative,
                which is exact: one that returns that negated again changes no bit.

        Raises:
            ValueError: what the function returned is no loss of each row.
            RuntimeError: the function raised, with that as its cause.
        """
        assert batch.loss_origins is not None
        samples, positions = batch.loss_origins.unbind(1)
        rows = LossRows(
            log_probabilities=-losses_L,
            labels=batch.loss_labels,
            samples=samples,
            positions=positions,
        )
        try:
            found = self._function(rows)
        except Exception as error:  # the user's code, whose lines a user wants to see
            raise RuntimeError(f"{self._named} failed") from error
        expected = _described(losses_L)
        if _described(found) != expected:
            raise ValueError(
                f"{self._named} returned {_described(found)}, expected the loss of each row, "
                f"{expected}"
            )
        return found


def user_loss(config: RunConfig) -> UserLoss | None:
    """What --loss-function asks for.

    Raises:
        ValueError: there is no such function; one line naming the flag.
    """
    name = config.training.loss_function
    return None if name is None else UserLoss(name)


def _described(value: object) -> str:
    """Such as "float32 [5] on cpu with a gradient"."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    kind = str(value.dtype).removeprefix("torch.")
    gradient = "with a gradient" if value.requires_grad else "without a gradient"
    return f"{kind} {list(value.shape)} on {value.device} {gradient}"
