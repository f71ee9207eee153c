"""Plans for ``visual_pack`` in tests, and the operator as a slow loop."""

from __future__ import annotations

import torch

from megatron_llava.ops.visual_pack import PackPlan

TAPS = 4


def plan_of(taps: torch.Tensor, weights: torch.Tensor, table_rows: int) -> PackPlan:
    """Taps and weights [R, 4] with their transpose: uses by table row, packed row, tap."""
    used = weights.flatten().nonzero().squeeze(1)
    table, order = taps.flatten()[used].sort(stable=True)
    counts = torch.bincount(table, minlength=table_rows)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    rows = used[order]
    return PackPlan(taps, weights, offsets, rows // TAPS, weights.flatten()[rows])


def random_plan(rows: int, counts: tuple[int, int, int], generator: torch.Generator) -> PackPlan:
    """Rows of every kind: copies of features, special rows and text, sums, and padding."""
    table_rows = sum(counts)
    taps = torch.randint(0, table_rows, (rows, TAPS), generator=generator)
    used = torch.randint(0, TAPS + 1, (rows, 1), generator=generator)
    weights = torch.rand(rows, TAPS, generator=generator) - 0.25
    weights = torch.where(torch.arange(TAPS) < used, weights, 0.0)
    weights[:, 0] = torch.where(used[:, 0] == 1, 1.0, weights[:, 0])
    if counts[1]:
        # A third of the rows are copies of one special row, as image_newline is.
        special = torch.rand(rows, generator=generator) < 1 / 3
        taps[:, 0] = torch.where(special & (used[:, 0] == 1), counts[0], taps[:, 0])
    return plan_of(taps, weights, table_rows)


def random_tables(
    counts: tuple[int, int, int], hidden: int, dtype: torch.dtype, generator: torch.Generator
) -> list[torch.Tensor]:
    """Features, special rows and text embeddings of so many rows."""
    return [torch.randn(n, hidden, generator=generator).to(dtype) for n in counts]


def slow_visual_pack(
    tables: list[torch.Tensor], taps: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Row by row and tap by tap in float64."""
    table = torch.cat([part.double() for part in tables])
    rows = []
    for row_taps, row_weights in zip(taps.tolist(), weights.double().tolist(), strict=True):
        row = 0.0 * table[0]  # zeros that have a gradient
        for tap, weight in zip(row_taps, row_weights, strict=True):
            if weight != 0.0:
                row = row + weight * table[tap]
        rows.append(row)
    return torch.stack(rows) if rows else table[:0]


def with_gradients(operator, tables, grad):
    """What ``operator(*tables)`` gives, and the gradients of the tables."""
    leaves = [part.detach().clone().requires_grad_() for part in tables]
    out = operator(*leaves)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    return [
        out.detach(),
        *(z if g is None else g for g, z in zip(gradients, zeros, strict=True)),
    ]
