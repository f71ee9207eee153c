"""Axes of charts: where a value stands, round ticks, numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 5, 10)
# An axis begins at zero unless that would leave the curve less than this share of the height.
_LEAST_SHARE = 0.35
# Values that differ by more than this factor from the median are read on a logarithmic axis.
_WIDE = 50.0
# Beside the values, a difference that no axis shows; and what is as good as zero.
_FLAT, _SMALLEST = 1e-6, 1e-300


@dataclass(frozen=True)
class Axis:
    """A range of values, its ticks, and whether it is logarithmic; low < high."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high end."""
        if self.logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def step_axis(first: int, last: int) -> Axis:
    """The axis of the steps of a run; 0 is in it where the run is long beside its first step."""
    low = 0 if first <= 0.1 * last else first
    high = max(last, low + 1)
    ticks = [tick for tick in round_values(low, high, 6) if low <= tick <= high]
    return Axis(low, high, tuple(tick for tick in ticks if tick == int(tick)))


def value_axis(values: Sequence[float]) -> Axis:
    """An axis that holds all of the values, at least one, and ends at its ticks."""
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 2]
    if low > _SMALLEST and high / middle > _WIDE:
        return _logarithmic(low, high)
    # Of values that are all but one, the axis shows how large they are.
    is_flat = high - low <= max(_FLAT * max(abs(low), abs(high)), _SMALLEST)
    if low >= 0 and (is_flat or high - low > _LEAST_SHARE * high):
        low = 0.0
    elif high <= 0 and (is_flat or high - low > _LEAST_SHARE * -low):
        high = 0.0
    if high - low <= _SMALLEST:
        high = low + 1.0
    ticks = round_values(low, high, 5)
    return Axis(ticks[0], ticks[-1], tuple(ticks))


def _logarithmic(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 6))
    last = first + every * max(1, math.ceil((last - first) / every))
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Axis(ticks[0], ticks[-1], ticks, logarithmic=True)


def round_values(low: float, high: float, number: int) -> list[float]:
    """About ``number`` + 1 values, equally far apart and round, that reach over low < high."""
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in _STEPS if raw <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, axis: Axis) -> str:
    """A tick with as many digits as tell it from its neighbours."""
    largest = max(abs(axis.low), abs(axis.high))
    if value == 0:
        return "0"
    if axis.logarithmic or not 1e-3 <= largest < 1e9:
        return f"{value:,.6g}" if 1e-3 <= value < 1e6 else _with_exponent(value, 6)
    step = axis.ticks[1] - axis.ticks[0] if len(axis.ticks) > 1 else 1.0
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def number_text(value: float) -> str:
    """A value in four digits, or without decimals where it is large."""
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-3:
        return _with_exponent(value, 3)
    if size >= 1000 or value == 0:
        return f"{value:,.0f}"
    text = f"{value:.{3 - math.floor(math.log10(size))}f}"
    return text.rstrip("0").rstrip(".")


def _with_exponent(value: float, decimals: int) -> str:
    mantissa, _, exponent = f"{value:.{decimals}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
