"""Entry point of the `lmk` script, which handles Ctrl-C from the first import on."""

from __future__ import annotations

from lmk.cli import limited_memory
from lmk.embed import interrupts


def run() -> None:
    """Runs the command line of this process and exits."""
    limited_memory.supervise()
    interrupts.install()
    try:
        from lmk.cli.main import main
    except KeyboardInterrupt:
        interrupts.leave()
    main()
