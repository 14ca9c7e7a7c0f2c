"""The log of one name in an object store: one object, replaced by compare-and-swap.

It has the lines of a local store's log. A change reads it, decides by what it says, and writes it with its lines added,
on the condition that it is still what was read; else it begins again. So every change is decided on the state that it
changes, and none is lost. Where the answer to a write was lost, the log itself tells whether the lines are in it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from wsmerge.errors import StoreError
from wsmerge.registry.history import Event, History, event_lines, parse_history
from wsmerge.registry.objects.interface import Held, ObjectAbsentError, ObjectChangedError, Objects, Tag
from wsmerge.registry.objects.layout import log_key

__all__ = ["change_log", "read_log"]

_PATIENCE_S: Final = 60.0
_LONGEST_WAIT_S: Final = 1.0
_NO_LOG: Final = Held(b"", Tag(None, None))


def read_log(objects: Objects, name: str) -> History:
    """What happened to `name`; empty where nothing did.

    Raises:
        StoreError: the log is damaged, or the store cannot be reached.
    """
    return parse_history(_held(objects, name).data, where=_where(objects, name))


def change_log(objects: Objects, name: str, decide: Callable[[History], Sequence[Event]]) -> None:
    """Add to the log what `decide` says, given the log as it is; called again where another process was faster.

    Raises:
        StoreError: others change it all the time, it is damaged, or the store cannot be reached.
    """
    end, wait_s = time.monotonic() + _PATIENCE_S, 0.01
    attempted: bytes | None = None
    while True:
        held = _held(objects, name)
        if attempted is not None and held.data.startswith(attempted):
            return  # the write had been done, and its answer was lost
        events = decide(parse_history(held.data, where=_where(objects, name)))
        if not events:
            return
        attempted = held.data[: held.data.rfind(b"\n") + 1] + event_lines(events)
        absent = held is _NO_LOG
        try:
            objects.put(log_key(name), attempted, if_absent=absent, if_match=None if absent else held.tag)
        except ObjectChangedError as error:
            if time.monotonic() > end:
                raise StoreError(
                    f"other processes have kept changing the log for {_PATIENCE_S:g} s",
                    where=_where(objects, name),
                    hint="try again",
                ) from error
        else:
            return
        time.sleep(random.uniform(0, wait_s))  # noqa: S311 - spreads writers, and guards nothing
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _held(objects: Objects, name: str) -> Held:
    try:
        return objects.get(log_key(name))
    except ObjectAbsentError:
        return _NO_LOG


def _where(objects: Objects, name: str) -> str:
    return f"{objects.label}/{log_key(name)}"
