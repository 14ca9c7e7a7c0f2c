"""Steps that need mergekit's own method: one whole tensor at a time, under torch.

Methods with reductions give mergekit's bits only when torch sees mergekit's shapes, so nothing is cut here. torch counts
its own threads; one step runs at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import DType, dtype_named
from wsmerge.core.tensors import TensorInput
from wsmerge.engine.methods.step import MergeStep
from wsmerge.errors import CheckpointError, WsmergeError

if TYPE_CHECKING:
    import torch

__all__ = ["merge_whole", "probed_dtype", "seed_torch"]


def merge_whole(step: MergeStep) -> memoryview:
    """The merged tensor as bytes of `step.result_dtype`, from mergekit's method of that name.

    Randomised methods draw from torch's generator: seeded for this tensor, or as `seed_torch` left it where the step asks
    for mergekit's own stream.

    Raises:
        CheckpointError: mergekit refuses the inputs or their parameters.
    """
    torch = _torch()
    from mergekit import merge_methods  # noqa: PLC0415 - seconds, and needed only for methods without a kernel here
    from mergekit.merge_methods.base import TensorEntry, TensorGroup, TensorMetadata  # noqa: PLC0415 - as above

    tensors = [_read(item.tensor).to(_torch_dtype(step.dtype)) for item in step.inputs]
    base = _taken_off(step, tensors)
    entries = tuple(
        TensorEntry(id=number, tensor=tensor, is_base=step.inputs[number].is_base)
        for number, tensor in enumerate(tensors)
    )
    group = TensorGroup(entries=entries, metadata=TensorMetadata(name=step.spec.name))
    method = merge_methods.get(step.method)
    # BLAS counts threads for each thread that calls it, and its sums depend on how many there are.
    torch.set_num_threads(torch.get_num_threads())
    with torch.no_grad(), _random_numbers(step):
        try:
            (merged,) = method((group,), parameters=_parameters(step))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise _refusal(step, error) from error
        if base is not None:
            merged = base + merged
    return _bytes(merged.to(_torch_dtype(step.result_dtype)))


def probed_dtype(step: MergeStep) -> DType:
    """The dtype that mergekit's method of that name gives, told by a tensor of four elements; the step's if it fails."""
    torch = _torch()
    from mergekit import merge_methods  # noqa: PLC0415 - whoever registered a method has loaded it
    from mergekit.merge_methods.base import TensorEntry, TensorGroup  # noqa: PLC0415 - as above

    entries = tuple(
        TensorEntry(number, torch.full((2, 2), 0.5 + number, dtype=_torch_dtype(step.dtype)), item.is_base)
        for number, item in enumerate(step.inputs)
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            (merged,) = merge_methods.get(step.method)((TensorGroup(entries),), parameters=_parameters(step))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            return step.dtype  # it may want other shapes; a wrong guess costs a rounding, which `out_dtype` decides
    return dtype_named(str(merged.dtype).removeprefix("torch."))


def seed_torch(seed: int) -> None:
    """Seed torch's generator as mergekit's `--random-seed` does, for the steps that follow."""
    _torch().manual_seed(seed)


def _refusal(step: MergeStep, error: Exception) -> WsmergeError:
    return CheckpointError(
        f"mergekit's {step.method} refuses it: {error}", where=step.spec.name, hint="see the parameters of the method"
    )


def _parameters(step: MergeStep) -> dict[str, Any]:
    """Parameters as mergekit's methods take them: shared ones plain, others by input."""
    by_input: dict[str, dict[int, Any]] = {}
    for number, item in enumerate(step.inputs):
        for name, value in item.parameters.items():
            by_input.setdefault(name, {})[number] = value
    return {**step.parameters, **by_input}


def _taken_off(step: MergeStep, tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """Where a direction stands for a model, take the base off all `tensors` and return it; else leave them, None.

    mergekit's methods take models. A method on deltas makes the same of these over a base of zeros, and w enters as it is;
    (base + w) - base would not be w.
    """
    base = next((tensor for tensor, item in zip(tensors, step.inputs, strict=True) if item.is_base), None)
    if base is None or not any(item.is_delta for item in step.inputs):
        return None
    for number, item in enumerate(step.inputs):
        if not item.is_delta:
            tensors[number] = tensors[number] - base
    return base


def _read(tensor: TensorInput) -> torch.Tensor:
    import torch  # noqa: PLC0415 - see _torch

    spec = tensor.spec
    result = torch.empty(spec.shape, dtype=_torch_dtype(spec.dtype))
    if spec.numel:
        flat = result.view(-1).view(torch.uint8)
        tensor.read_into(0, flat.numpy().data)
    return result


def _bytes(tensor: torch.Tensor) -> memoryview:
    torch = _torch()
    if tensor.numel() == 0:
        return memoryview(b"")
    flat: NDArray[np.uint8] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return flat.data


@contextmanager
def _random_numbers(step: MergeStep) -> Iterator[None]:
    if step.mergekit_rng:
        yield
        return
    torch = _torch()
    digest = hashlib.sha256(f"{step.seed}\0{step.spec.name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def _torch() -> Any:  # noqa: ANN401 - a module
    import torch  # noqa: PLC0415 - seconds and hundreds of MB, needed only for methods without a kernel here

    return torch


def _torch_dtype(dtype: DType) -> torch.dtype:
    found: torch.dtype = getattr(_torch(), dtype.recipe_name)
    return found
