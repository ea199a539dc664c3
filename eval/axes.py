"""Axes of plots: where a value lies between two ends, and which round numbers to write."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`.

    Attributes:
        low, high: its ends, low < high.
        ticks: (value, text), rising, within the ends.
        logarithmic: equal ratios take equal lengths; low > 0 then.

    Raises:
        ValueError: ends that are not finite or do not rise, or a logarithm of 0 or less.
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
        """Where a value lies, 0 at the low end and 1 at the high one."""
        if self.logarithmic:
            return log10(value / self.low) / log10(self.high / self.low)
        # Halves, since the width of the widest axes is more than a float holds.
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)


def axis_of(
    low: float, high: float, *, logarithmic: bool = False, exact: bool = False, ticks: int = 5
) -> Axis:
    """An axis with round ticks.

    Args:
        low, high: what it must hold; equal ends are moved apart.
        logarithmic: ticks at powers of ten (and 2 and 5 times them where they are few).
        exact: begin and end at `low` and `high`; else the top is moved up to a round number.
        ticks: about how many.

    Raises:
        ValueError: as Axis.
    """
    if low == high:
        high = low + max(1.0, abs(low))
    if logarithmic:
        return Axis(low, high, _log_ticks(low, high), logarithmic=True)
    step = _round_step(high / ticks - low / ticks)
    if not exact:
        high = max(high, ceil(high / step - 1e-9) * step)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    values = [n * step for n in range(first, last + 1)]
    places = max(0, -floor(log10(step)))
    return Axis(low, high, tuple((value, _text(value, places)) for value in values))


def _round_step(wanted: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `wanted`."""
    power = 10.0 ** floor(log10(wanted))
    return next(step * power for step in _STEPS if step * power >= wanted * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    within = [10.0**n for n in powers if low <= 10.0**n <= high]
    if len(within) < 4:
        within = [m * 10.0**n for n in powers for m in (1, 2, 5) if low <= m * 10.0**n <= high]
    return tuple((value, _text(value, max(0, -floor(log10(value))))) for value in within)


def _text(value: float, places: int) -> str:
    """1234.5 -> "1,234.5" to so many decimal places; very large and small ones as 1e9."""
    if value and (abs(value) >= 1e7 or places > 4):
        return f"{value:.3g}"
    return f"{value + 0.0:,.{places}f}"
