"""Entry point of the `lmk` script, which answers Ctrl-C from the first import on."""

from __future__ import annotations

from lmk.embed import interrupts


def run() -> None:
    """Runs the command line of this process and exits."""
    interrupts.install()
    try:
        from lmk.cli.main import main
    except KeyboardInterrupt:
        interrupts.leave()
    main()
