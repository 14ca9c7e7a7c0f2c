"""Tensors shared out among threads, each with one thread of the linear algebra library."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from wsmerge.steering.similarity.vectors import Vector

__all__ = ["Progress", "by_tensor"]

Progress = Callable[[int, int], None]
"""Called with elements done and elements in all."""

_Result = TypeVar("_Result")


def by_tensor(
    vectors: Sequence[Vector], work: Callable[[str], _Result], *, threads: int | None, progress: Progress | None
) -> tuple[tuple[str, ...], NDArray[np.float64], list[_Result]]:
    """What `work` gives for each tensor that any of `vectors` has; large tensors come first.

    Args:
        vectors: laid over common names.
        work: called with the name of a tensor, in any thread.
        threads: tensors in work at once; None for the number of cores.
        progress: called with elements done and elements in all.

    Returns:
        The names, elements of each (float64), and what was given for each.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - looks through the loaded libraries

    sizes = {name: math.prod(shape) for vector in vectors for name, shape in vector.shapes.items()}
    found: dict[str, _Result] = {}
    done, total = 0, sum(sizes.values())
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads or _cores()) as pool:
        running = {pool.submit(work, name): name for name in sorted(sizes, key=lambda name: -sizes[name])}
        try:
            for future in as_completed(running):
                name = running[future]
                found[name] = future.result()
                done += sizes[name]
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(sizes), np.array(list(sizes.values()), np.float64), [found[name] for name in sizes]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
