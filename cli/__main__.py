"""`python -m lmk.cli`, for where the `lmk` script is not on the path."""

from lmk.cli.entry import run

run()
