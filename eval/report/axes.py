"""Axes of plots, with ticks at round numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

_STEPS = (1, 2, 5, 10)
LONGEST_TEXT = 9  # characters that fit between two ticks of five


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`.

    Attributes:
        low, high: the ends, low < high.
        ticks: (value, text), ascending, within the ends.
        logarithmic: whether equal ratios have equal lengths; then low > 0.

    Raises:
        ValueError: the ends are not finite or do not ascend, or a logarithmic axis starts at 0 or
            below.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis cannot go from {self.low} to {self.high}")
        if self.logarithmic and self.low <= 0:
            raise ValueError(f"a logarithmic axis cannot begin at {self.low}")

    def at(self, value: float) -> float:
        """Returns the position of a value: 0 at the low end and 1 at the high end."""
        if self.logarithmic:
            return log10(value / self.low) / log10(self.high / self.low)
        # Halves are subtracted, since the width of the widest axes exceeds the range of a float.
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)


def axis_of(
    low: float,
    high: float,
    *,
    logarithmic: bool = False,
    exact: bool = False,
    whole: bool = False,
    ticks: int = 5,
) -> Axis:
    """Returns an axis with round ticks.

    Args:
        low, high: the range that the axis must cover; equal ends are moved apart.
        logarithmic: put ticks at powers of ten (if these are few, also at 2 and 5 times each).
        exact: start and end at `low` and `high`; otherwise the top moves up to a round number.
        whole: put ticks at whole numbers only, and one at `low` if there is space.
        ticks: the approximate number of ticks.

    Raises:
        ValueError: as Axis.
    """
    if low == high:
        high = low + max(1.0, abs(low))
    if logarithmic:
        return Axis(low, high, _log_ticks(low, high), logarithmic=True)
    step = _round_step(high / ticks - low / ticks)
    step = max(1.0, step) if whole else step
    if not exact:
        rounded = ceil(high / step - 1e-9) * step
        high = max(high, rounded) if isfinite(rounded) else high
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    values = [n * step for n in range(first, last + 1)]
    named = _named(values, max(0, -floor(log10(step) + 1e-9)))
    if whole and first * step - low >= step / 2:
        named = ((low, _text(low, 0, low >= 10_000)), *named)
    return Axis(low, high, named)


def _round_step(wanted: float) -> float:
    """Returns the smallest of 1, 2, 5 times a power of ten that is at least `wanted`."""
    power = 10.0 ** floor(log10(wanted))
    return next(step * power for step in _STEPS if step * power >= wanted * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    within = [10.0**n for n in powers if low <= 10.0**n <= high]
    if len(within) < 4:
        within = [m * 10.0**n for n in powers for m in (1, 2, 5) if low <= m * 10.0**n <= high]
    return tuple(
        (value, _text(value, max(0, -floor(log10(value) + 1e-9)), value >= 10_000))
        for value in within
    )


def _named(values: list[float], places: int) -> tuple[tuple[float, str], ...]:
    """Returns ticks with texts, all in thousands if one is; only the ends if texts are too long."""
    whole = all(value % 100 == 0 for value in values)
    thousands = whole and max(map(abs, values), default=0) >= 10_000
    ticks = [(value, _text(value, places, thousands)) for value in values]
    if any(len(text) > LONGEST_TEXT for _, text in ticks):
        ticks = ticks[:1] + ticks[1:][-1:]
    return tuple(ticks)


def _text(value: float, places: int, thousands: bool) -> str:
    """Returns a number as text: 5000 as "5,000" or "5k", very large or small values as "1e+09"."""
    value += 0.0  # -0.0 becomes 0.0
    if abs(value) >= 1e7 or places > 8:
        return f"{value:.4g}"
    if thousands:
        return f"{value / 1000:g}k" if value else "0"
    return f"{value:,.{places}f}"
