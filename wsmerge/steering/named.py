"""Functions of the user's own, named in a file as `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from wsmerge.errors import UsageError

__all__ = ["function_named"]


def function_named(name: str) -> Callable[..., Any]:
    """The function that `module:function` names, from the folder that the user is in too.

    Raises:
        UsageError: it cannot be loaded, or is no function.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot be loaded: {error}", where=name, hint="name it as Python imports it") from error
    if not callable(found):
        raise UsageError("is no function", where=name)
    loaded: Callable[..., Any] = found
    return loaded
