"""A run with --torch-compile is the run without, over two tensor-parallel ranks."""

import pytest
from distributed_jobs import train


@pytest.mark.grid
@pytest.mark.exhaustive  # minutes of compilation
@pytest.mark.parametrize("recompute", [(), ("--recompute-activations", "--recompute-vision")])
def test_losses_are_those_of_a_run_without(pool, setup, recompute):
    arguments = setup.arguments("--tensor-model-parallel-size=2", *recompute, steps=3)
    expected = pool.run(train, arguments, world_size=2)[0]["steps"]
    given = [*arguments, "--torch-compile"]
    found = pool.run(train, given, world_size=2, timeout=1200)[0]["steps"]
    for step, reference in zip(found, expected, strict=True):
        assert step["lm loss"] == pytest.approx(reference["lm loss"], rel=1e-4)
        assert step["grad norm"] == pytest.approx(reference["grad norm"], rel=1e-4)


@pytest.mark.grid
@pytest.mark.exhaustive
def test_a_tower_of_transformers_compiles(pool, setup):
    arguments = setup.arguments(model="dinov2", steps=3)
    expected = pool.run(train, arguments)[0]["steps"]
    found = pool.run(train, [*arguments, "--torch-compile"], timeout=1200)[0]["steps"]
    for step, reference in zip(found, expected, strict=True):
        assert step["lm loss"] == pytest.approx(reference["lm loss"], rel=1e-4)
        assert step["grad norm"] == pytest.approx(reference["grad norm"], rel=1e-4)
