"""Numbers that options take: as click's, but `nan`, which no bound keeps out, is refused too."""

from __future__ import annotations

import math
from typing import Any

import click


class Float(click.types.FloatParamType):
    """Any number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number.

        Raises:
            click.BadParameter: it is none.
        """
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class FloatRange(click.FloatRange):
    """A number within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number.

        Raises:
            click.BadParameter: it is none, or outside the bounds.
        """
        return super().convert(Float().convert(value, param, ctx), param, ctx)
