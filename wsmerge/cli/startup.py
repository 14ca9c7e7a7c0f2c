"""Keeps what numba does not need out of the command line's process, so that short commands stay short.

On its first call numba looks for scipy's linear algebra, in case that somebody compiles a matrix product. No loop here
does, and scipy takes a quarter of a second. The command line, whose process is its own, lets numba find none; everything
else finds scipy as always, and the library leaves numba as it is.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["hide_scipy_from_numba", "loading"]

_HIDDEN = "scipy.linalg"
_ASKING = "numba.np.linalg"


class _Hidden(MetaPathFinder):
    """Says to numba alone that scipy's linear algebra is not installed."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the interface's
        target: ModuleType | None = None,  # noqa: ARG002 - the interface's
    ) -> ModuleSpec | None:
        """None for everything else, which is then looked for elsewhere."""
        if fullname == _HIDDEN and _asking_module() == _ASKING:
            raise ModuleNotFoundError(f"numba does without {fullname} here", name=fullname)
        return None


def hide_scipy_from_numba() -> None:
    """From now on numba finds no scipy in this process."""
    if not any(isinstance(finder, _Hidden) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hidden())


@contextmanager
def loading() -> Iterator[None]:
    """Modules are loaded here: what they make stays, so nobody looks for garbage among it meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _asking_module() -> str:
    """The module whose import statement is being carried out."""
    frame = sys._getframe(1)  # noqa: SLF001 - the public way to it, inspect, takes longer to load than this saves
    while frame.f_back is not None and _is_machinery(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


def _is_machinery(name: str) -> bool:
    return name == __name__ or name.startswith("importlib.")
