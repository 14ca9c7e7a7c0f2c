"""What merge methods hold in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from wsmerge.engine.methods.choice import is_native
from wsmerge.engine.methods.step import MergeStep

if TYPE_CHECKING:
    from wsmerge.engine.plan import OutputTensor

__all__ = ["BITS_WINDOW_ELEMENTS", "METHOD_CHUNK_ELEMENTS", "WINDOW_ELEMENTS", "methods_peak_bytes"]

METHOD_CHUNK_ELEMENTS: Final = 1 << 16
"""Elements that a merge method is given at a time: the rows of several inputs stay in a core's cache."""

WINDOW_ELEMENTS: Final = 1 << 16
"""Elements of an input that are read from its file at a time."""

BITS_WINDOW_ELEMENTS: Final = 1 << 19
"""Elements of an input that are read at a time where a method takes them as they are stored."""

TORCH_BYTES: Final = 350_000_000
"""Resident memory of torch and mergekit, where they must be loaded (measured, rounded up)."""

TORCH_ALONE_BYTES: Final = 250_000_000
"""The same of torch alone."""

_PIECE_BYTES: Final = 6 * 4 << 20
"""What a worker holds of a piece of 2**20 elements whose sums torch takes (see `methods.slerp`)."""

_SCRATCH: Final = 6
"""Tensors of the result's size in float32 that mergekit's kernels hold beside their inputs."""

_LEAN: Final = {"slerp": 1, "passthrough": 1, "linear": 1}
"""The same, of kernels that work in pieces or in place."""


def methods_peak_bytes(tensors: Sequence[OutputTensor], workers: int, draws: Sequence[int] = ()) -> int:
    """Upper bound of what the merge steps hold beside the stream's own buffers.

    Args:
        tensors: in the order in which they are written.
        workers: number of threads.
        draws: with mergekit's random numbers, positions of the tensors in the order in which they are computed.
    """
    steps = [tensor.step for tensor in tensors if not tensor.is_unchanged]
    inputs = max((len(step.inputs) for step in steps), default=0)
    chunks = workers * (
        METHOD_CHUNK_ELEMENTS * (8 * inputs + 32) + WINDOW_ELEMENTS * 8 * inputs + BITS_WINDOW_ELEMENTS * 2 * inputs
    )
    whole = [_whole_bytes(step) for step in steps if not is_native(step)]
    if whole:
        return chunks + TORCH_BYTES + max(whole) + _waiting_bytes(tensors, draws)
    summed = any(step.method == "slerp" and not step.precise for step in steps)
    return chunks + (TORCH_ALONE_BYTES + workers * _PIECE_BYTES if summed else 0)


def _whole_bytes(step: MergeStep) -> int:
    held = step.spec.numel * step.dtype.itemsize
    return (len(step.inputs) + 2) * held + _LEAN.get(step.method, _SCRATCH) * 4 * step.spec.numel


def _waiting_bytes(tensors: Sequence[OutputTensor], draws: Sequence[int]) -> int:
    """Most bytes of results that wait for being written, since mergekit's order of computing is another one."""
    place = {tensor: index for index, tensor in enumerate(draws)}
    computed, waiting, most = 0, 0, 0
    for number in range(len(draws)):
        while computed <= place[number]:
            waiting += _result_bytes(tensors[draws[computed]])
            computed += 1
        most = max(most, waiting)
        waiting -= _result_bytes(tensors[number])
    return most


def _result_bytes(tensor: OutputTensor) -> int:
    step = tensor.step
    return 0 if tensor.is_unchanged or is_native(step) else step.spec.numel * step.result_dtype.itemsize
