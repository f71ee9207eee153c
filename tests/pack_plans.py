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
    none = torch.zeros(0, dtype=torch.int64)
    return PackPlan(taps, weights, offsets, rows // TAPS, weights.flatten()[rows], none, none)


def with_positions(plan: PackPlan, features: int, positions: int, generator) -> PackPlan:
    """The plan with a position, or none, for each of a few views, one of them without features."""
    if not positions:
        return plan
    inner = torch.randint(0, features + 1, (3,), generator=generator).sort().values
    bounds = torch.tensor([0, *inner.tolist(), int(inner[-1]), features])
    of_view = torch.randint(-1, positions, (len(bounds) - 1,), generator=generator)
    of_feature = of_view.repeat_interleave(bounds.diff())
    return plan._replace(feature_positions=of_feature, view_bounds=bounds)


def random_plan(rows: int, counts: tuple[int, ...], generator: torch.Generator) -> PackPlan:
    """Rows of every kind: copies of features, special rows and text, sums, and padding.

    counts: rows of the tables; the positions may be left out.
    """
    table_rows = sum(counts[:3])
    taps = torch.randint(0, table_rows, (rows, TAPS), generator=generator)
    used = torch.randint(0, TAPS + 1, (rows, 1), generator=generator)
    weights = torch.rand(rows, TAPS, generator=generator) - 0.25
    weights = torch.where(torch.arange(TAPS) < used, weights, 0.0)
    weights[:, 0] = torch.where(used[:, 0] == 1, 1.0, weights[:, 0])
    if counts[1]:
        # A third of the rows are copies of one special row, as image_newline is.
        special = torch.rand(rows, generator=generator) < 1 / 3
        taps[:, 0] = torch.where(special & (used[:, 0] == 1), counts[0], taps[:, 0])
    plan = plan_of(taps, weights, table_rows)
    return with_positions(plan, counts[0], sum(counts[3:]), generator)


def random_tables(
    counts: tuple[int, ...], hidden: int, dtype: torch.dtype, generator: torch.Generator
) -> list[torch.Tensor]:
    """Features, special rows, text embeddings and perhaps positions of so many rows."""
    return [torch.randn(n, hidden, generator=generator).to(dtype) for n in counts]


def slow_visual_pack(tables: list[torch.Tensor], plan: PackPlan) -> torch.Tensor:
    """Row by row and tap by tap in float64."""
    table = torch.cat([part.double() for part in tables[:3]])
    of_feature = plan.feature_positions.tolist()
    if of_feature:
        positions = tables[3].double()
        added = [positions[p] if p >= 0 else 0.0 * positions[0] for p in of_feature]
        table = torch.cat((table[: len(added)] + torch.stack(added), table[len(added) :]))
    rows = []
    weights = plan.weights.double().tolist()
    for row_taps, row_weights in zip(plan.taps.tolist(), weights, strict=True):
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
