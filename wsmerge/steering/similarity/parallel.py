"""Tensors shared out among threads, each with one thread of the linear algebra library."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.interrupts import Interrupts
from wsmerge.steering.similarity.vectors import Vector

__all__ = ["Progress", "by_batch", "by_tensor", "sizes_of"]

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
    sizes = sizes_of(vectors)

    def alone(names: Sequence[str]) -> list[_Result]:
        return [work(name) for name in names]

    found = by_batch(sizes, [[name] for name in sizes], alone, threads=threads, progress=progress)
    return tuple(sizes), np.array(list(sizes.values()), np.float64), [found[name] for name in sizes]


def sizes_of(vectors: Sequence[Vector]) -> dict[str, int]:
    """Elements of each tensor that any of `vectors` has, by common names."""
    shapes = {name: shape for vector in vectors for name, shape in vector.shapes.items()}
    return {name: math.prod(shape) for name, shape in shapes.items()}


def by_batch(
    sizes: Mapping[str, int],
    batches: Iterable[Sequence[str]],
    work: Callable[[Sequence[str]], Sequence[_Result]],
    *,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, _Result]:
    """What `work` gives for each tensor, some tensors a call; large batches come first.

    Args:
        sizes: elements of each tensor.
        batches: the names of tensors, each in one of them.
        work: called with names, in any thread; gives something for each.
        threads: batches in work at once; None for the number of cores.
        progress: called with elements done and elements in all.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - looks through the loaded libraries

    elements = [(sum(sizes[name] for name in names), names) for names in batches]
    found: dict[str, _Result] = {}
    done, total = 0, sum(size for size, _ in elements)
    blas = threadpool_limits(1, user_api="blas")
    with Interrupts() as interrupts, blas, ThreadPoolExecutor(threads or _cores()) as pool:
        ordered = sorted(elements, key=lambda item: -item[0])
        running = {pool.submit(work, names): (size, names) for size, names in ordered}
        try:
            for future in as_completed(running):
                interrupts.check()
                size, names = running[future]
                found.update(zip(names, future.result(), strict=True))
                done += size
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
