"""The directions of a plan as one low-rank delta a tensor, coefficients folded in.

    sum_i k_i * b_i @ a_i = [k_1 b_1 | k_2 b_2 | ...] @ [a_1; a_2; ...]

k_i * b_i is rounded to float32 as the merge itself rounds it. The merge sums each direction over its own ranks and then adds
the sums; one product of all ranks adds them in one chain, which gives other last bits of float32. torch's product (MKL on
x86) cuts the ranks into runs of 192 where there are twice as many, and into halves between 192 and that, sums each run by
itself and then adds the runs. Factors filled up with zeros to such runs, one a direction, therefore give the merge's bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.tensors import BaseIdentity
from wsmerge.engine.plan import MergePlan, OutputTensor, Term
from wsmerge.errors import DirectionError

__all__ = ["FoldedTerms", "is_factored"]

_RUN: Final = 192
_HALF: Final = 97  # two of them are the fewest ranks that are cut in halves


def is_factored(plan: MergePlan, tensor: OutputTensor) -> bool:
    """Whether all that is added to `tensor` is held as factors."""
    return all(plan.directions[term.direction].source.rank(term.delta) is not None for term in tensor.terms)


class FoldedTerms:
    """What a plan adds to some of its tensors, as a `DeltaSource` of low-rank deltas.

    Args:
        plan: whose terms.
        modules: for each tensor, the name under which its delta is found here, `MODULE.weight`.
        in_runs: fill the factors up with zeros, so that torch's product has the merge's bits.
    """

    def __init__(self, plan: MergePlan, modules: Mapping[str, str], *, in_runs: bool = False) -> None:
        self.label = "the directions of the recipe"
        self._plan = plan
        self._tensors = {modules[item.spec.name]: item for item in plan.tensors if item.spec.name in modules}
        self._in_runs = in_runs

    @property
    def digest(self) -> str:
        """Changes when a coefficient, a direction, a base tensor's shape or the form does."""
        rows = [
            [name, list(item.spec.shape), [self._row(term) for term in item.terms]]
            for name, item in sorted(self._tensors.items())
        ]
        return sha256_hex(canonical_json([rows, self._in_runs]))

    @property
    def base(self) -> BaseIdentity:
        """The base of the first direction."""
        return self._plan.directions[0].source.base

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each delta."""
        return {name: item.spec.shape for name, item in self._tensors.items()}

    @property
    def is_exact(self) -> bool:
        """Whether torch's product sums in the merge's order, for every tensor."""
        return all(self._is_exact(item) for item in self._tensors.values())

    def rank(self, name: str) -> int:
        """The sum of the directions' ranks, with what they are filled up to."""
        terms = self._tensors[name].terms
        width = self._width(terms)
        return len(terms) * width if width else sum(self._ranks(terms))

    def low_rank(self, name: str) -> LowRankDelta:
        """The float32 factors; `b` holds the coefficients."""
        terms = self._tensors[name].terms
        width = self._width(terms)
        factors = [self._scaled(term) for term in terms]
        b = np.concatenate([_filled(item.b, width, 1) for item in factors], axis=1)
        return LowRankDelta(b, np.concatenate([_filled(item.a, width, 0) for item in factors], axis=0))

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Never called: all deltas are low-rank."""
        raise DirectionError(f"the delta of {name} from element {start} is held as two factors ({out.size} were asked)")

    def _scaled(self, term: Term) -> LowRankDelta:
        factors = self._plan.directions[term.direction].source.low_rank(term.delta)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused when written
            b = factors.scaled(term.k).b.astype(np.float32)
        return LowRankDelta(b, factors.a.astype(np.float32))

    def _row(self, term: Term) -> list[str | float]:
        return [self._plan.directions[term.direction].source.digest, term.delta, term.k]

    def _ranks(self, terms: Iterable[Term]) -> list[int]:
        found = [self._plan.directions[term.direction].source.rank(term.delta) for term in terms]
        return [rank for rank in found if rank is not None]

    def _is_exact(self, tensor: OutputTensor) -> bool:
        ranks = self._ranks(tensor.terms)
        return (len(ranks) == 1 and ranks[0] <= _RUN) or self._width(tensor.terms) > 0

    def _width(self, terms: tuple[Term, ...]) -> int:
        """Ranks that each direction is filled up to; 0 where they are left as they are."""
        ranks = self._ranks(terms)
        if not self._in_runs or len(terms) == 1 or max(ranks) > _RUN:
            return 0
        return max(_HALF, *ranks) if len(terms) == 2 else _RUN


def _filled(values: NDArray[np.float32], width: int, axis: int) -> NDArray[np.float32]:
    missing = max(0, width - values.shape[axis])
    return np.pad(values, [(0, missing if number == axis else 0) for number in range(2)])
