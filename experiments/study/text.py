"""How the report writes figures: shares in percent, changes in points, tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from wsmerge.steering.bootstrap import Interval

__all__ = ["listed", "p_value", "percent", "points", "relative", "seeds_told", "signed", "strengths", "table"]


def percent(share: Interval) -> str:
    """`62 % [55, 69]`."""
    if math.isnan(share.value):
        return "none"
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def points(change: Interval) -> str:
    """`+41 [+33, +49]`, in points of a hundred."""
    if math.isnan(change.value):
        return "none"
    return f"{signed(change.value)} [{signed(change.low)}, {signed(change.high)}]"


def relative(change: Interval) -> str:
    """`+2.1 % [+0.3, +4.0]`, of a perplexity."""
    return f"{100 * change.value:+.1f} % [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def strengths(ks: Sequence[float]) -> str:
    """`-0.41, -0.39`; the seeds' strengths."""
    return ", ".join(f"{k:+.3g}" if k else "0" for k in ks)


def p_value(p: float) -> str:
    """`p = 0.031`."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def listed(names: Sequence[str], none: str = "none") -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return names[0] if names else none
    return f"{', '.join(names[:-1])} and {names[-1]}"


def seeds_told(seeds: Sequence[int]) -> str:
    """`seed 3` or `seeds 0, 1 and 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {listed([str(seed) for seed in seeds])}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def signed(change: float) -> str:
    """`+41`, in points of a hundred; a change that rounds to nothing has no sign."""
    return f"{100 * change:+.0f}" if abs(100 * change) >= 0.5 else "0"
