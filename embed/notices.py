"""Notices about input that was read but is odd: warnings of the logger `lmk`.

The command prints each as one line on stderr; a program decides with the `logging` module.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("lmk")


def notice(where: object, *texts: str) -> None:
    """Logs each text as a warning of its own, with the file or option it is about."""
    for text in texts:
        LOGGER.warning("%s", " ".join(f"{where}: {text}".split()))
