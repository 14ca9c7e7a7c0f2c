"""Strengths at which a distance from k = 0 has given values, found with few evaluations.

The KL divergence from k = 0 grows about with the square of k near 0: log KL over log k is a line of slope 2. A strength is
sought along the line through the two evaluations beside it (regula falsi), and every third time by bisection, so that it is
found where the distance is no power of k at all. Of several strengths with one distance the
smallest that is bracketed is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_EVALUATIONS", "TOLERANCE", "Found", "sizes_at"]

TOLERANCE: Final = 0.05
"""How far a distance may be from the one that is aimed at, relative to it."""

MAX_EVALUATIONS: Final = 12
"""Of the distance, for each value that is aimed at."""

_DIGITS: Final = 4
_LARGEST_STEP: Final = 16.0
_SATURATED: Final = 1.05
"""A distance that grows by no more than this factor while k grows by `_LARGEST_STEP` grows no further."""
_ROUNDING: Final = 0.01
"""A distance up to here, far below what is aimed at, may be rounding: that of bfloat16, say."""


@dataclass(frozen=True, slots=True)
class Found:
    """The size of the strength that was found for one distance.

    Attributes:
        aimed: the distance that is aimed at.
        size: |k|, with four significant digits; where the distance is not reached the largest that was found below it,
            None where there is none.
        distance: at `size`; 0 where that is None.
        reached: whether the distance is the one aimed at, within `TOLERANCE`.
        beyond: the distance at the next larger size that was tried, infinite where the model breaks; None where the
            distance was still below the one aimed at when the search ended.
    """

    aimed: float
    size: float | None
    distance: float
    reached: bool
    beyond: float | None = None


def sizes_at(
    aimed: Iterable[float],
    distance: Callable[[float], float],
    known: MutableMapping[float, float] | None = None,
    start: float = 1.0,
) -> list[Found]:
    """Find the sizes at which `distance` has the values that are aimed at, in ascending order of these.

    Args:
        aimed: above 0.
        distance: of a size above 0; infinite where the model breaks.
        known: distances by size; what is evaluated is added.
        start: the size that is evaluated first where nothing is known.
    """
    known = {} if known is None else known
    found = []
    for value in sorted(aimed):
        for number in range(MAX_EVALUATIONS):
            if _nearest(known, value) is not None:
                break
            size = _next(known, value, start, halve=number % 3 == 2)
            if size is None:
                break
            known[size] = distance(size)
        found.append(_found(known, value))
    return found


def _found(known: MutableMapping[float, float], value: float) -> Found:
    size = _nearest(known, value)
    if size is not None:
        return Found(value, size, known[size], reached=True)
    low, high = _around(known, value)
    beyond = None if high is None else known[high]
    return Found(value, low, 0.0 if low is None else known[low], reached=False, beyond=beyond)


def _nearest(known: MutableMapping[float, float], value: float) -> float | None:
    """The size whose distance is nearest to `value`, within the tolerance; the smaller of equal ones."""
    size = min(sorted(known), key=lambda one: abs(known[one] - value), default=None)
    return size if size is not None and abs(known[size] - value) <= TOLERANCE * value else None


def _around(known: MutableMapping[float, float], value: float) -> tuple[float | None, float | None]:
    """The largest size below the first whose distance is above `value`, and that one."""
    high = min((size for size, distance in known.items() if distance > value), default=None)
    low = max((size for size in known if high is None or size < high), default=None)
    return low, high


def _next(known: MutableMapping[float, float], value: float, start: float, *, halve: bool) -> float | None:
    """The size that is to be evaluated next; None where nothing can come of it."""
    if not known:
        return _rounded(start)
    low, high = _around(known, value)
    if high is None:
        return None if _is_saturated(known, value) else _beyond(known, value, sorted(known))
    if low is None:
        return _beyond(known, value, sorted(known, reverse=True))
    middle = _rounded(math.sqrt(low * high))
    if halve or known[low] <= 0 or known[high] == math.inf:
        return None if middle in known else middle
    part = math.log(value / known[low]) / math.log(known[high] / known[low])
    size = _rounded(low * (high / low) ** part)
    # Neighbours among rounded sizes have nothing between them.
    return next((one for one in (size, middle) if one not in known), None)


def _beyond(known: MutableMapping[float, float], value: float, sizes: Sequence[float]) -> float:
    """Where the line through the last two sizes comes to `value`, beyond the last and no further than the largest step."""
    last = sizes[-1]
    most = math.log(_LARGEST_STEP)
    if not 0 < known[last] < math.inf:
        return _rounded(last * _LARGEST_STEP if known[last] <= 0 else last / _LARGEST_STEP)
    slope = 2.0
    if len(sizes) > 1 and 0 < known[sizes[-2]] < math.inf:
        slope = math.log(known[last] / known[sizes[-2]]) / math.log(last / sizes[-2])
    step = math.log(value / known[last]) / min(max(slope, 0.5), 4.0)
    return _rounded(last * math.exp(min(max(step, -most), most)))


def _is_saturated(known: MutableMapping[float, float], value: float) -> bool:
    """Whether the distance grows no further with k; what rounding makes of a k that is far too small does not count."""
    last = max(known)
    smaller = [size for size in known if _LARGEST_STEP * size <= last * (1 + 1e-9)]
    return (
        bool(smaller) and known[last] > min(value / 100, _ROUNDING) and known[last] <= _SATURATED * known[max(smaller)]
    )


def _rounded(size: float) -> float:
    return float(f"{size:.{_DIGITS}g}")
