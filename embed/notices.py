"""Notices about unusual input: warnings of the logger `lmk`.

The command prints each notice as one line on stderr. A program can configure them with `logging`.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("lmk")


def notice(where: object, *texts: str) -> None:
    """Logs each text as a separate warning, with the file or option it is about."""
    for text in texts:
        LOGGER.warning("%s", " ".join(f"{where}: {text}".split()))
