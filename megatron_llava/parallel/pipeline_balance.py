"""How many decoder layers each pipeline stage gets, so that no stage is slower than it must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def place_layers(
    num_layers: int,
    layer_cost: int,
    stage_costs: Sequence[int],
    *,
    multiple: int = 1,
    minimum: int = 1,
) -> tuple[int, ...]:
    """The placement whose slowest stage is the least slow; of equally good ones the most even.

    Megatron-core counts the first and the last stage apart and gives all stages between them the
    same number. Costs are integers, so that every rank finds the same placement.

    Args:
        num_layers: decoder layers of the model.
        layer_cost: cost of one of them.
        stage_costs: what each stage has to do besides its layers, first stage first; 2 or more.
        multiple: what the layers of every stage divide by, such as its number of virtual stages.
        minimum: layers that each stage has at least.

    Returns:
        Decoder layers of each stage.

    Raises:
        ValueError: there is no such placement.
    """

    def order(placement: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        # The last entry decides between mirror images; without it the choice would be by accident.
        spread = sum(layers * layers for layers in placement)
        return slowest_stage(placement, layer_cost, stage_costs), spread, placement

    valid = _placements(num_layers, len(stage_costs), multiple, minimum)
    found = min(valid, key=order, default=None)
    if found is None:
        raise ValueError(
            f"{num_layers} layers cannot be placed on {len(stage_costs)} pipeline stages with "
            f"{minimum} or more and a multiple of {multiple} on each"
        )
    return found


def slowest_stage(placement: Sequence[int], layer_cost: int, stage_costs: Sequence[int]) -> int:
    """Cost of the stage that has the most to do."""
    return max(costs_of_stages(placement, layer_cost, stage_costs))


def costs_of_stages(
    placement: Sequence[int], layer_cost: int, stage_costs: Sequence[int]
) -> list[int]:
    """Cost of each stage with its layers."""
    return [layers * layer_cost + own for layers, own in zip(placement, stage_costs, strict=True)]


def _placements(
    num_layers: int, stages: int, multiple: int, minimum: int
) -> Iterator[tuple[int, ...]]:
    """Every placement that core accepts: (first, middle, ..., middle, last)."""
    assert stages >= 2 and multiple >= 1 and minimum >= 1, (stages, multiple, minimum)
    if num_layers % multiple:
        return
    least = -(-minimum // multiple) * multiple
    between = stages - 2
    for first in range(least, num_layers, multiple):
        most = (num_layers - first - least) // between if between else 0
        for middle in range(least, most + 1, multiple) if between else (0,):
            last = num_layers - first - between * middle
            if last >= least:
                yield (first, *[middle] * between, last)
