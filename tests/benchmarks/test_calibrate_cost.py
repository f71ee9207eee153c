"""What calibrate_cost.py makes of its measurements."""

from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def calibrate(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import calibrate_cost

    return calibrate_cost


def packs(calibrate, costs, noise=0.0):
    generator = np.random.default_rng(0)
    made = []
    for _ in range(40):
        rows, views = int(generator.integers(500, 8000)), int(generator.integers(0, 30))
        attended = int(rows * generator.integers(100, 2000))
        seconds = 0.01 + float(np.dot(costs, (rows, attended, views)))
        made.append(
            calibrate.Measured(rows, attended, views, seconds * generator.uniform(1, 1 + noise))
        )
    return made


def test_coefficients_are_found(calibrate):
    costs = np.array([2e-6, 3e-10, 4e-4])
    found, explained = calibrate.fitted(packs(calibrate, costs))
    np.testing.assert_allclose(found, costs, rtol=1e-6)
    assert explained > 0.999999
    found, explained = calibrate.fitted(packs(calibrate, costs, noise=0.05))
    np.testing.assert_allclose(found, costs, rtol=0.15)
    assert 0.95 < explained < 0.9999


def test_no_coefficient_is_negative(calibrate):
    found, _ = calibrate.fitted(packs(calibrate, np.array([2e-6, 0.0, 4e-4]), noise=0.1))
    assert (found >= 0).all()


@pytest.mark.parametrize(
    ("costs", "integers"),
    [
        ([2e-6, 3e-10, 4e-4], [666667, 100, 133333333]),
        ([2e-6, 0.0, 4e-4], [100, 0, 20000]),
        ([1.0, 1e-12, 0.5], [10**9, 0, 5 * 10**8]),
    ],
)
def test_integers_keep_the_ratios(calibrate, costs, integers):
    assert calibrate.as_integers(np.array(costs)) == integers
