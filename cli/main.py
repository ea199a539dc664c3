"""The `lmk` command."""


def main() -> None:
    """Runs the command line."""
