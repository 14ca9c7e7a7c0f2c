"""Operations killed at each of their changes on the disk, without any clean-up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

KILLED = 9
STEPS = ("fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "chmod", "fchmod", "ftruncate", "pwrite")


def kills(operation: Callable[[], object], *, more: tuple[tuple[Any, str], ...] = ()) -> Iterator[int]:
    """Do `operation` in a child that dies just before its n-th step on the disk, for every n; yields n after each death.

    Call it in a process without threads. `more` names further functions, by module and name, that are steps.
    """
    # A killed process loses nothing that was written, so here syncing is a step to die at and costs no time.
    setattr(os, "fsync", lambda _descriptor: None)  # noqa: B010 - an assignment would have to have fsync's type
    for step in range(10_000):
        child = os.fork()
        if child == 0:
            _die_at(step, more)
            operation()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        assert code == KILLED, code
        yield step
    raise AssertionError("no end")


def _die_at(step: int, more: tuple[tuple[Any, str], ...]) -> None:
    count = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == step:
                os._exit(KILLED)
            count += 1
            return real(*args, **kwargs)

        return call

    for module, name in (*((os, name) for name in STEPS), *more):
        setattr(module, name, deadly(getattr(module, name)))
