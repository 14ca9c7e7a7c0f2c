"""`python -m wsmerge`: the command line."""

import sys

__all__ = ["run"]


def run() -> None:
    """Run the command line; Ctrl-C ends it with 130 even while its modules are still being loaded."""
    try:
        from wsmerge.cli import main  # noqa: PLC0415 - the import is what may be interrupted

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
