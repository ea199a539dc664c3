"""Number types of options: as click's, but they also refuse `nan`, which passes any bound."""

from __future__ import annotations

import math
from typing import Any

import click


class Float(click.types.FloatParamType):
    """The click type of any number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number.

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
        """Returns the number.

        Raises:
            click.BadParameter: the value is not a number, or outside the bounds.
        """
        return super().convert(Float().convert(value, param, ctx), param, ctx)
