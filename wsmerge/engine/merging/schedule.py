"""The order in which mergekit merges its tensors, and so in which it draws random numbers.

mergekit makes a task of every tensor that it loads, gathers, merges and saves, and always runs the one that goes first among
those that have all they wait for: by the name under which the tensor is stored, then by kind of task, then by the place at
which a walk over the tasks met it.

    load       the stored name; nothing where transformers makes the tensor of several
    gather     the last of its loads' names
    merge      as gather; nothing where a tokenizer moves rows

The walk takes tasks out of a set of small integers, so it is done here with such a set too. Names decide nearly always; the walk
does among tensors that transformers makes (the experts of a mixture), and where one stored tensor goes into several of
the output. What comes then may depend on the hashes of mergekit's process too, if models share some of a gather's tensors.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Drawing", "Load", "draw_order"]

# What goes first among tasks of one name; the smaller the earlier.
_WRITER: Final = -10_000
_SAVE: Final = -1_000
_OTHER: Final = 0
_GATHER: Final = 10
_LOAD: Final = 1_000


@dataclass(frozen=True, slots=True)
class Load:
    """One tensor that is loaded: `model` and `weight` tell it from others, `label` is its stored name or empty."""

    model: str
    weight: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One tensor of the output: the tensors that it is merged from, and whether a tokenizer moves their rows."""

    loads: tuple[Load, ...]
    permuted: bool = False


def draw_order(drawings: Sequence[Drawing]) -> list[int]:
    """The places in `drawings`, which are in the output's order, in the order in which mergekit merges them."""
    tasks = _Tasks(drawings)
    merges = {number: place for place, number in enumerate(tasks.merges)}
    return [merges[number] for number in _run(tasks) if number in merges]


class _Tasks:
    """mergekit's tasks, numbered as it numbers them: a task, then whatever it waits for and has no number yet."""

    def __init__(self, drawings: Sequence[Drawing]) -> None:
        self.keys: list[tuple[str, int]] = []
        self.needs: list[list[int]] = []
        self.targets: list[int] = []
        self.merges: list[int] = []
        self._numbers: dict[Hashable, int] = {}
        for drawing in drawings:
            self._save(drawing)
        finalize = self._new("", _OTHER)
        self.needs[finalize] += [self._shared("writer", "", _WRITER), *self.targets]
        self.targets.append(finalize)
        if any(drawing.permuted for drawing in drawings):
            self.targets.append(self._shared("tokenizer", "", _OTHER))

    def _save(self, drawing: Drawing) -> None:
        label = max((load.label for load in drawing.loads), default="")
        shown = "" if drawing.permuted else label
        save = self._new(shown, _SAVE)
        self.needs[save].append(self._shared("writer", "", _WRITER))
        merge = self._new(shown, _OTHER)
        self.needs[save].append(merge)
        self.needs[merge].append(self._permuted(drawing, label) if drawing.permuted else self._gather(drawing, label))
        self.targets.append(save)
        self.merges.append(merge)

    def _permuted(self, drawing: Drawing, label: str) -> int:
        permuted = self._new("", _OTHER)
        self.needs[permuted].append(self._shared("tokenizer", "", _OTHER))
        self.needs[permuted].append(self._gather(drawing, label))
        return permuted

    def _gather(self, drawing: Drawing, label: str) -> int:
        name = frozenset(drawing.loads)
        is_new = name not in self._numbers
        gather = self._shared(name, label, _GATHER)
        if is_new:
            self.needs[gather] += [self._shared(load, load.label, _LOAD) for load in drawing.loads]
        return gather

    def _shared(self, name: Hashable, label: str, rank: int) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new(label, rank)
        return self._numbers[name]

    def _new(self, label: str, rank: int) -> int:
        self.keys.append((label, rank))
        self.needs.append([])
        return len(self.keys) - 1


def _run(tasks: _Tasks) -> list[int]:
    """The numbers of all tasks as they are run."""
    place = _walk(tasks)
    waiting = [len(needs) for needs in tasks.needs]
    waiters: dict[int, list[int]] = defaultdict(list)
    for number, needs in enumerate(tasks.needs):
        for need in needs:
            waiters[need].append(number)
    ready = [(*tasks.keys[number], place[number], number) for number, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    done: list[int] = []
    while ready:
        number = heapq.heappop(ready)[-1]
        done.append(number)
        for waiter in waiters[number]:
            waiting[waiter] -= 1
            if not waiting[waiter]:
                heapq.heappush(ready, (*tasks.keys[waiter], place[waiter], waiter))
    return done


def _walk(tasks: _Tasks) -> dict[int, int]:
    """For each task the place at which mergekit's walk from the targets meets it."""
    place: dict[int, int] = {}
    left, seen = set(tasks.targets), set()
    while left:
        number = left.pop()
        if number in seen:
            continue
        seen.add(number)
        for need in tasks.needs[number]:
            left.add(need)
            place.setdefault(need, len(place))
            place.setdefault(number, len(place))
    for number in tasks.targets:  # a target that waits for nothing and that nothing waits for
        place.setdefault(number, len(place))
    return place
