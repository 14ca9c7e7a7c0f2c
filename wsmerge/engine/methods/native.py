"""Which merge methods are computed here block by block, and where mergekit's own must run on the whole tensor.

In the default mode a native method gives mergekit's bits, or, where mergekit's choice is arbitrary (equals at a trim
threshold, random masks), a defined choice with the same statistics. What cannot be had so in blocks is left to mergekit.
A precise step is always computed in float32 with float64 statistics.
"""

from __future__ import annotations

from collections.abc import Callable

from wsmerge.core.dtypes import BF16, F16, F32
from wsmerge.engine.methods.deltas import DeltaMethod
from wsmerge.engine.methods.dropping import Drop
from wsmerge.engine.methods.elementwise import Linear, Nearswap, Passthrough
from wsmerge.engine.methods.ranking import Rank
from wsmerge.engine.methods.sce import Sce
from wsmerge.engine.methods.slerp import TorchSlerp
from wsmerge.engine.methods.spherical import Nuslerp, Slerp
from wsmerge.engine.methods.step import BlockMethod, MergeStep
from wsmerge.engine.methods.stock import ModelStock
from wsmerge.engine.methods.trimming import Trim

__all__ = ["native_method"]

# Up to so many summands torch has one order; from `_LONG_SUM` on it adds in groups; in between it adds in order but for
# the last elements, those past the last multiple of so many (the widest strip that it uses on any processor).
_SHORT_SUM = 4
_LONG_SUM = 16
_STRIP = 128


def native_method(step: MergeStep) -> BlockMethod | None:
    """The method of `step` on blocks, None where mergekit's own method must run on the whole tensor.

    Args:
        step: the step, with inputs and parameters that its method allows.

    Raises:
        RecipeError: (from `prepare`) a parameter is outside the range that the method is defined for.
    """
    if step.dtype not in (BF16, F16, F32):
        return None
    applies, method = _METHODS.get(step.method, (None, None))
    if applies is None or not applies(step):
        return None
    return _PRECISE.get(step.method, method) if step.precise else method


def _always(_step: MergeStep) -> bool:
    return True


def _has_one_input(step: MergeStep) -> bool:
    return len(step.inputs) == 1


def _has_base_and_one(step: MergeStep) -> bool:
    return len(step.inputs) == 2 and step.base is not None


def _adds_in_order(step: MergeStep) -> bool:
    """Whether torch adds the deltas one after the other."""
    if step.base is None:
        return False
    summands = len(step.non_base)
    whole_strips = summands < _LONG_SUM and step.spec.numel % _STRIP == 0
    return step.precise or summands <= _SHORT_SUM or whole_strips


def _is_not_rescaled(step: MergeStep) -> bool:
    # mergekit's sum of magnitudes has bits of its own, and every kept element is multiplied by it.
    return _adds_in_order(step) and (step.precise or not step.parameters.get("rescale", False))


def _has_rows(step: MergeStep) -> bool:
    # For more dimensions mergekit ranks along the second one, whose elements are not adjacent.
    return _adds_in_order(step) and len(step.spec.shape) <= 2


def _is_precise_and_flat(step: MergeStep) -> bool:
    return step.precise and len(step.non_base) == 2 and bool(step.parameters.get("nuslerp_flatten", True))


def _is_precise_stock(step: MergeStep) -> bool:
    whole = not step.parameters.get("filter_wise", False)
    return step.precise and step.base is not None and len(step.non_base) >= 2 and whole


def _is_precise_with_deltas(step: MergeStep) -> bool:
    return step.precise and step.base is not None and len(step.non_base) > 0


_PRECISE: dict[str, BlockMethod] = {"slerp": Slerp()}
"""What computes a precise step where its sums need not have torch's order."""

_METHODS: dict[str, tuple[Callable[[MergeStep], bool], BlockMethod]] = {
    "linear": (_always, Linear()),
    "passthrough": (_has_one_input, Passthrough()),
    "nearswap": (_has_base_and_one, Nearswap()),
    "task_arithmetic": (_adds_in_order, DeltaMethod(consensus=False, normalize=False)),
    "ties": (_is_not_rescaled, DeltaMethod(consensus=True, normalize=True, sparsifier=Trim())),
    "breadcrumbs": (_is_not_rescaled, DeltaMethod(consensus=False, normalize=False, sparsifier=Trim(outliers=True))),
    "breadcrumbs_ties": (
        _is_not_rescaled,
        DeltaMethod(consensus=True, normalize=False, sparsifier=Trim(outliers=True)),
    ),
    "dare_linear": (_adds_in_order, DeltaMethod(consensus=False, normalize=False, sparsifier=Drop())),
    "dare_ties": (_adds_in_order, DeltaMethod(consensus=True, normalize=False, sparsifier=Drop())),
    "della_linear": (_has_rows, DeltaMethod(consensus=False, normalize=False, sparsifier=Rank())),
    "della": (_has_rows, DeltaMethod(consensus=True, normalize=True, sparsifier=Rank())),
    "slerp": (_has_base_and_one, TorchSlerp()),
    "nuslerp": (_is_precise_and_flat, Nuslerp()),
    "model_stock": (_is_precise_stock, ModelStock()),
    "sce": (_is_precise_with_deltas, Sce()),
}
