"""`python -m lmk.cli`, for systems without the `lmk` script on the path."""

from lmk.cli.entry import run

run()
