"""What a trait or sweep file may use of the user's: functions named as `module:function`, and keys in the environment.

Such files come from strangers too. A function runs only where the user allows its module (`--allow-code`), and a key goes
only where its variable is known to belong, or where the user allows it (`--key-env`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from wsmerge.errors import UsageError

__all__ = ["NOTHING", "Allowed", "function_named"]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the user lets a file use.

    Attributes:
        code: modules whose functions may be called, and folders of lm-eval tasks, which hold code too; as the file
            names them.
        keys: environment variables that may be sent to the judge that the file names.
    """

    code: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()

    def check_code(self, name: str, where: str) -> None:
        """Refuse code that the user did not allow.

        Raises:
            UsageError: `name` is not among `code`.
        """
        if name not in self.code:
            raise UsageError(
                f"the file asks to run code of {name}, which is not allowed",
                where=where,
                hint=f"look at that code; if you trust it, allow it with --allow-code {name}",
            )


NOTHING: Final = Allowed()


def function_named(name: str, allowed: Allowed) -> Callable[..., Any]:
    """The function that `module:function` names, from the folder that the user is in too.

    Raises:
        UsageError: its module is not allowed, it cannot be loaded, or it is no function.
    """
    module, _, function = name.partition(":")
    allowed.check_code(module, name)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot be loaded: {error}", where=name, hint="name it as Python imports it") from error
    if not callable(found):
        raise UsageError("is no function", where=name)
    loaded: Callable[..., Any] = found
    return loaded
