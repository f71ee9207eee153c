"""Functions for --loss-function, and ways in which such a function can be wrong."""

from __future__ import annotations

from typing import Any

import torch

from megatron_llava.training.user_loss import LossRows

STORE: Any = None
"""Whose labels ``checked`` expects."""


def plain(rows: LossRows) -> torch.Tensor:
    """The cross entropy."""
    return -rows.log_probabilities


def rollout(samples: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Old log probabilities and advantages [L], as if looked up by sample and position."""
    places = (17 * samples + positions).double()
    return (-5 + places.sin()).float(), (3 * places).cos().float()


def ppo_clip(rows: LossRows, epsilon: float = 0.2) -> torch.Tensor:
    """Equation 7 of Schulman et al. 2017, https://arxiv.org/abs/1707.06347, to be minimised."""
    old, advantages = rollout(rows.samples, rows.positions)
    ratio = (rows.log_probabilities - old).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def checked(rows: LossRows) -> torch.Tensor:
    """The cross entropy, where every row is the label in the store that it says it is."""
    samples, positions = rows.samples.tolist(), rows.positions.tolist()
    for label, sample, position in zip(rows.labels.tolist(), samples, positions, strict=True):
        found = STORE.load(sample, with_images=False)
        assert found.token_ids[found.label_mask == 1][position] == label, (sample, position)
    assert len({*zip(samples, positions, strict=True)}) == len(samples)
    return plain(rows)


def doubled(rows: LossRows) -> torch.Tensor:
    return -rows.log_probabilities.double()


def summed(rows: LossRows) -> torch.Tensor:
    return -rows.log_probabilities.sum()


def detached(rows: LossRows) -> torch.Tensor:
    return -rows.log_probabilities.detach()


def listed(rows: LossRows) -> list[float]:
    return rows.log_probabilities.tolist()


def raises(rows: LossRows) -> torch.Tensor:
    raise ValueError("no advantages here")
