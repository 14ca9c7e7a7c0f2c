"""What drawing components of factors adds to the variance of an estimate that runs of rows are drawn for.

A delta b @ a of rank R is the sum of R components b[:, c] a[c], and <u, b @ a> over N runs of rows the sum of N x R parts
z[j, c]. Of these n runs and m components are drawn, each without replacement and independently, and all n x m parts are read:

    estimate    N R / (n m) * sum z
    variance    N^2 R^2 * ((1 - n/N) s_j^2 / n  +  (1 - m/R) s_c^2 / m  -  (1 - n/N) (1 - m/R) s_jc^2 / (n m))

with s_j^2 the variance of the runs' means, s_c^2 that of the components' means, and s_jc^2 that of what is left of a part
without both, (n - 1) (m - 1) in the denominator. The third term is there because the means of few parts vary for that reason
as well. This is unbiased: cross-classified sampling (Ohlsson, Journal of Official Statistics 12, 1996). The first term is that
of runs alone; here are the other two. Of one tensor the estimate can be below 0; sums over tensors are what is told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ComponentSums"]

Float64 = NDArray[np.float64]


class ComponentSums:
    """Sums over the drawn parts of some deltas for some tensors, taken run by run.

    Args:
        deltas: how many.
        tensors: how many.
        drawn: components that are drawn, 2 or more.
        rank: components that there are.
    """

    def __init__(self, deltas: int, tensors: int, drawn: int, rank: int) -> None:
        self._rank, self._drawn = rank, drawn
        self._by_component = np.zeros((deltas, drawn, tensors))
        self._squares = np.zeros((deltas, tensors))

    def add(self, parts: Float64) -> None:
        """Add parts of more runs: deltas x components x tensors x runs."""
        with np.errstate(all="ignore"):  # what is not finite is told with its tensor, once all are done
            self._by_component += parts.sum(axis=3)
            self._squares += np.einsum("dctj,dctj->dt", parts, parts)

    def variance(self, delta: int, x: Float64, runs: int) -> Float64:
        """The second and third term, by tensor.

        Args:
            delta: its number.
            x: estimates of what each drawn run contributes, tensors x runs.
            runs: how many there are.
        """
        count, drawn, rank = x.shape[1], self._drawn, self._rank
        with np.errstate(all="ignore"):  # as above
            means = x / rank  # of the components, by run
            of_components = self._by_component[delta].T / count
            mean = means.mean(axis=1)
            left = (
                self._squares[delta]
                - drawn * (means**2).sum(axis=1)
                - count * (of_components**2).sum(axis=1)
                + count * drawn * mean**2
            ) / ((count - 1) * (drawn - 1))
            spread = ((of_components - mean[:, None]) ** 2).sum(axis=1) / (drawn - 1)
            kept = 1 - drawn / rank
            found: Float64 = (runs * rank) ** 2 * kept / drawn * (spread - (1 - count / runs) * left / count)
        return found
