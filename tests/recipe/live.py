"""mergekit itself, imported once and only by the tests that compare with it."""

import warnings
from functools import cache
from importlib import import_module
from typing import Any


@cache
def mergekit(module: str) -> Any:
    """A module of the installed mergekit; the first costs some seven seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
        return import_module(f"mergekit.{module}")
