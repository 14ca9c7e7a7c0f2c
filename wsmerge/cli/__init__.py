"""The command line: one file a verb group, one output sink, one map from error to exit code."""

from wsmerge.cli.app import main

__all__ = ["main"]
