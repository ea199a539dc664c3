"""Numbers that options take."""

from __future__ import annotations

import math
from typing import Any

import click


class FloatRange(click.FloatRange):
    """As click's, but `nan`, which no bound keeps out, is refused too."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number.

        Raises:
            click.BadParameter: it is none, or outside the range.
        """
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number
