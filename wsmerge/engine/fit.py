"""Which delta goes to which tensor of a checkpoint, and every reason why one cannot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from wsmerge.core.digest import structure_digest
from wsmerge.core.reading import is_same_delta
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import BaseMismatchError, NonFiniteError, Problems

if TYPE_CHECKING:
    from wsmerge.engine.plan import PlannedDirection

__all__ = ["Placement", "place_deltas"]


_LARGEST_K = 3.4e38  # of float32, in which terms are summed


class Placement(NamedTuple):
    """`k` times the delta `delta` of direction number `direction`."""

    direction: int
    delta: str
    k: float


def place_deltas(base: Checkpoint, directions: Sequence[PlannedDirection]) -> Mapping[str, list[Placement]]:
    """For each tensor of `base` that any direction changes, what is added to it, in the order of `directions`.

    A tied tensor is changed once; a base that stores both ends of what the direction's base ties gets both changed.

    Raises:
        NonFiniteError: a coefficient that is NaN or infinite.
        BaseMismatchError: every delta that has no place in `base`.
    """
    placed: defaultdict[str, list[Placement]] = defaultdict(list)
    problems = Problems()
    for number, item in enumerate(directions):
        _check_finite(item)
        _check_structure(base, item.source, problems)
        for delta in item.source.shapes:
            k = item.coefficients.get(delta, 0.0)
            targets = _targets(base, item, delta, problems)
            if k != 0:
                for target in targets:
                    placed[target].append(Placement(number, delta, k))
    problems.raise_if_any(
        BaseMismatchError,
        "the directions do not fit this base",
        where=base.label,
        hint="merge into the model that the direction was made over, or a fine-tune of it with the same tensors",
    )
    return placed


def _check_finite(item: PlannedDirection) -> None:
    bad = [f"{name}: k = {k}" for name, k in item.coefficients.items() if not math.isfinite(k) or abs(k) > _LARGEST_K]
    if bad:
        raise NonFiniteError(
            "coefficients must be finite numbers that float32 holds",
            where=item.source.label,
            hint="mend the weight of this direction",
            details=tuple(bad),
        )


def _check_structure(base: Checkpoint, source: DeltaSource, problems: Problems) -> None:
    shapes = {name: spec.shape for name, spec in base.specs.items()}
    without_tied = {name: shape for name, shape in shapes.items() if name not in source.base.tied}
    tied_too = shapes | {out: shapes[into] for out, into in base.tied.items() if into in shapes}
    forms = {structure_digest(form.items()) for form in (shapes, without_tied, tied_too)}
    if source.base.structure not in forms:
        problems.add(
            f"{source.label}: made over {source.base.model}, whose names and shapes are not those of {base.label}"
            f" (structure {source.base.structure[:12]}, here {structure_digest(shapes.items())[:12]})"
        )


def _targets(base: Checkpoint, item: PlannedDirection, delta: str, problems: Problems) -> list[str]:
    """The tensors of `base` that get the delta named `delta`."""
    source = item.source
    shape = source.shapes[delta]
    twins = [out for out, into in source.base.tied.items() if into == delta and out not in source.shapes]
    targets = [name for name in (delta, *twins) if name in base.specs]
    if delta not in base.specs:
        tied_to = base.tied.get(delta)
        if tied_to is None:
            near = get_close_matches(delta, base.specs, n=1)
            problems.add(f"{source.label}: {delta} is not in {base.label}" + (f"; near: {near[0]}" if near else ""))
        elif not _is_same_delta(item, delta, tied_to):
            problems.add(
                f"{source.label}: {delta} and {tied_to} are one tensor in {base.label}, and their deltas or coefficients differ"
            )
    for target in targets:
        spec = base.specs[target]
        if spec.shape != shape:
            problems.add(f"{source.label}: {target} is {list(spec.shape)} in {base.label}, and its delta {list(shape)}")
        elif not spec.dtype.is_float or spec.dtype.itemsize == 1:
            problems.add(f"{source.label}: {target} is {spec.dtype} in {base.label}, to which nothing can be added")
    return targets


def _is_same_delta(item: PlannedDirection, first: str, second: str) -> bool:
    same_k = item.coefficients.get(first, 0.0) == item.coefficients.get(second, 0.0)
    return second in item.source.shapes and same_k and is_same_delta(item.source, first, second)
