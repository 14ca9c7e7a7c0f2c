"""Sources of deltas laid over each other: which tensor of one is which of another, with every tied tensor once.

A direction over a base with tied embeddings holds one delta, under the input's name; laid over names that have both
tensors it stands for both. A source that names both tensors of its own tied pair counts the pair once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wsmerge.core.reading import is_same_delta
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.names import CheckpointNames
from wsmerge.errors import BaseMismatchError, Problems

__all__ = ["Vector", "lay_over", "lay_together"]


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """One source, its deltas found under common names.

    Attributes:
        source: where the deltas are read.
        own: the source's name of each common name that it has a delta for.
        shapes: shape of the delta for each common name.
    """

    source: DeltaSource
    own: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def label(self) -> str:
        """How results name it."""
        return self.source.label

    def rank(self, name: str) -> int | None:
        """Rank of the factors of the delta for common name `name`, None for a dense one."""
        return self.source.rank(self.own[name])


def lay_over(
    sources: Iterable[DeltaSource], shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str], *, where: str
) -> list[Vector]:
    """Lay `sources` over the tensors of a base.

    Args:
        sources: directions over that base, or over one with the same tensors.
        shapes: checkpoint name and shape of every tensor of the base.
        tied: output and input of each pair that is one tensor in the base; only the input's name is used.
        where: what messages call the base.

    Raises:
        BaseMismatchError: deltas that have no tensor of their name and shape; all of them.
    """
    problems = Problems()
    names = CheckpointNames([*shapes, *tied])
    found = [_laid_over(source, shapes, tied, names, problems) for source in sources]
    problems.raise_if_any(
        BaseMismatchError,
        "deltas that do not fit the base",
        where=where,
        hint="give the base that the directions were made over, or a model with the same tensors",
    )
    return found


def lay_together(sources: Sequence[DeltaSource]) -> list[Vector]:
    """Lay `sources` over each other by the names that they have.

    Raises:
        BaseMismatchError: deltas of one name with different shapes, or sources over different bases that share no name.
    """
    problems = Problems()
    shapes: dict[str, tuple[int, ...]] = {}
    vectors: list[Vector] = []
    for source in sources:
        held = _once(source)
        own = {name: name for name in held}
        for name, shape in held.items():
            if shapes.setdefault(name, shape) != shape:
                problems.add(f"{source.label}: {name} is {list(shape)}, and {list(shapes[name])} elsewhere")
        for other in vectors:
            if other.source.base.structure != source.base.structure and not own.keys() & other.own.keys():
                problems.add(f"{source.label} and {other.label} are over different bases and share no tensor")
        vectors.append(Vector(source, own, held))
    problems.raise_if_any(
        BaseMismatchError, "these cannot be compared", hint="compare directions and updates over one base"
    )
    return vectors


def _once(source: DeltaSource) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `source` without the output of a tied pair where the input is there."""
    tied, shapes = source.base.tied, source.shapes
    return {name: tuple(shape) for name, shape in shapes.items() if tied.get(name) not in shapes}


def _laid_over(
    source: DeltaSource,
    shapes: Mapping[str, tuple[int, ...]],
    tied: Mapping[str, str],
    names: CheckpointNames,
    problems: Problems,
) -> Vector:
    own: dict[str, str] = {}
    held = _once(source)
    outs = [(out, into) for out, into in source.base.tied.items() if out not in source.shapes]
    for name, shape in held.items():
        partners = [out for out, into in outs if into == name]
        for spelling in (name, *partners):
            here = names.find(spelling)
            if here is None:
                if spelling == name:
                    problems.add(f"{source.label}: there is no {name}{names.suggestion(name)}")
                continue
            common = tied.get(here, here)
            other = own.get(common)
            if other is None:
                own[common] = name
                if shapes[common] != shape:
                    problems.add(f"{source.label}: {name} is {list(shape)}, and {list(shapes[common])} in the base")
            elif other != name and not is_same_delta(source, other, name):
                problems.add(f"{source.label}: {other} and {name} are one tensor in the base, and their deltas differ")
    return Vector(source, own, {common: held[name] for common, name in own.items()})
