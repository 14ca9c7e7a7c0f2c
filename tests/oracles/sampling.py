"""Estimates from sampled rows the slow way: every delta dense, in float64, run by run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def crossed(parts: NDArray[np.float64], runs: int, rank: int) -> tuple[float, float]:
    """Total of runs x components and its variance, from the n x m `parts` that are drawn; by the means themselves."""
    n, m = parts.shape
    of_runs, of_components, mean = parts.mean(axis=1), parts.mean(axis=0), parts.mean()
    left = sum((parts[j, c] - of_runs[j] - of_components[c] + mean) ** 2 for j in range(n) for c in range(m))
    left /= (n - 1) * (m - 1)
    out, off = 1 - n / runs, 1 - m / rank
    spread = out * of_runs.var(ddof=1) / n + off * of_components.var(ddof=1) / m - out * off * left / (n * m)
    return runs * rank * float(mean), (runs * rank) ** 2 * float(spread)


Dense = Mapping[str, NDArray[np.float64]]


def estimated(update: Dense, direction: Dense, drawn: Mapping[str, Any]) -> dict[str, float]:
    """Cosine, projection and |u|, each with its standard error, from the runs of rows that `drawn` has for each tensor.

    The derivatives of the three after <u, w> and <u, u> are taken by differences.
    """
    totals = np.zeros(2)
    covariance = np.zeros((2, 2))
    norm = float(np.sqrt(sum(np.sum(delta**2) for delta in direction.values())))
    for name, rows in drawn.items():
        u = update.get(name, np.zeros((1, 1))).reshape(rows.rows, -1)
        w = direction.get(name, np.zeros_like(u)).reshape(u.shape)
        runs = [slice(number * rows.run, (number + 1) * rows.run) for number in rows.drawn]
        held = np.array([[np.sum(u[run] * w[run]), np.sum(u[run] ** 2)] for run in runs])
        totals += rows.runs * held.mean(axis=0)
        if len(runs) < rows.runs:
            left = 1 - len(runs) / rows.runs
            covariance += rows.runs**2 * left / len(runs) * np.cov(held, rowvar=False)

    def figures(inner: float, square: float) -> NDArray[np.float64]:
        return np.array([inner / np.sqrt(square) / norm, inner / norm**2, np.sqrt(square)])

    steps = np.diag(1e-6 * np.array([np.sqrt(totals[1]) * norm, totals[1]]))
    slopes = np.stack([(figures(*(totals + step)) - figures(*(totals - step))) / (2 * step.sum()) for step in steps])
    errors = np.sqrt(np.einsum("ik,ij,jk->k", slopes, covariance, slopes))
    names = ("cosine", "projection", "update_norm")
    return dict(zip(names, figures(*totals), strict=True)) | {
        f"{name}_error": error for name, error in zip(names, errors, strict=True)
    }
