"""Entry point `python -m lmk.cli`, for systems whose PATH lacks the `lmk` script."""

from lmk.cli.entry import run

run()
