"""Click types of numbers that also refuse `nan`, which click accepts within any bounds."""

from __future__ import annotations

import math
from typing import Any

import click


class Float(click.types.FloatParamType):
    """The click type of a number without bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the value as a number.

        Raises:
            click.BadParameter: the value is not a number.
        """
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class FloatRange(click.FloatRange):
    """The click type of a number within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the value as a number.

        Raises:
            click.BadParameter: the value is not a number, or is outside the bounds.
        """
        return super().convert(Float().convert(value, param, ctx), param, ctx)
