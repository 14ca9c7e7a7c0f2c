"""The merge methods of mergekit 0.1.5 as data: what each reads from `parameters`, and which inputs it takes.

A test compares this table with the installed mergekit. A method that was registered with mergekit in this process
(`mergekit.merge_methods.register`) is found by name too.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Any, Final

from wsmerge.errors import RecipeError
from wsmerge.recipe.method import REQUIRED, BasePolicy, Method, OptionalTensors, Parameter, Scope

__all__ = [
    "METHODS",
    "REQUIRED",
    "BasePolicy",
    "Method",
    "OptionalTensors",
    "Parameter",
    "Scope",
    "method_named",
    "method_of",
]


def method_named(name: str) -> Method:
    """The method that recipes call `name`: one of `METHODS`, else one registered with mergekit in this process.

    Raises:
        RecipeError: there is none.
    """
    found = METHODS.get(name) or _registered(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), METHODS, 3)
    raise RecipeError(
        f"there is no merge_method {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""),
        hint="methods registered with mergekit are found after their module is imported: give --plugin MODULE, or import "
        f"it first in Python; built in are {', '.join(sorted(METHODS))}",
    )


def _registered(name: str) -> Method | None:
    # Whoever registered a method imported this module, so there is no need to pay for its import where nobody did.
    registry = sys.modules.get("mergekit.merge_methods.registry")
    if registry is None:
        return None
    specs = {method.spec.name: method.spec for method in registry.registered_methods()}
    return method_of(specs[name]) if name in specs else None


def method_of(spec: Any) -> Method:  # noqa: ANN401 - mergekit's types are not imported here
    """The method that mergekit's `MergeMethodSpec` describes."""
    contract = spec.contract
    return Method(
        spec.name,
        tuple(
            Parameter(one.name, one.value_type, one.scope.value, REQUIRED if one.required else one.default)
            for one in spec.parameters
        ),
        base=contract.base.value,
        min_inputs=contract.min_inputs,
        max_inputs=contract.max_inputs,
        min_non_base=contract.min_non_base,
        max_non_base=contract.max_non_base,
        optional_tensors=spec.optional_tensor_policy.value,
    )


def _task_arithmetic(name: str, *more: Parameter, normalize: bool, rescale: bool, randomised: bool = False) -> Method:
    parameters = (
        Parameter("int8_mask", bool, "shared", default=False),
        Parameter("normalize", bool, "shared", normalize),
        Parameter("rescale", bool, "shared", rescale),
        Parameter("lambda", float, "shared", 1.0),
        Parameter("weight", float, "non_base"),
        Parameter("density", float, "non_base", 1.0),
        *more,
    )
    return Method(name, parameters, base="required", randomised=randomised, on_deltas=True)


_GAMMA: Final = Parameter("gamma", float, "non_base", 0.01)
_EPSILON: Final = Parameter("epsilon", float, "non_base", 0.15)
_RAM_EPSILON: Final = Parameter("epsilon", float, "shared", 1e-5)

_ALL: Final = (
    Method(
        "linear",
        (Parameter("weight", float, "input"), Parameter("normalize", bool, "shared", default=True)),
    ),
    Method(
        "slerp",
        (Parameter("t", float, "shared"),),
        base="required",
        min_inputs=2,
        max_inputs=2,
        optional_tensors="passthrough_singleton",
    ),
    Method(
        "nuslerp",
        (
            Parameter("weight", float, "non_base"),
            Parameter("nuslerp_row_wise", bool, "shared", default=False),
            Parameter("nuslerp_flatten", bool, "shared", default=True),
        ),
        base="optional",
        min_non_base=2,
        max_non_base=2,
        optional_tensors="passthrough_singleton",
    ),
    Method(
        "multislerp",
        (
            Parameter("weight", float, "non_base"),
            Parameter("normalize_weights", bool, "shared", default=True),
            Parameter("eps", float, "shared", 1e-8),
        ),
        base="optional",
        min_non_base=1,
    ),
    Method("karcher", (Parameter("max_iter", int, "shared", 10), Parameter("tol", float, "shared", 1e-5))),
    Method("passthrough", (Parameter("scale", float | None, "input", None),), max_inputs=1),
    Method(
        "nearswap",
        (Parameter("t", float, "shared"),),
        base="required",
        min_inputs=2,
        max_inputs=2,
        optional_tensors="passthrough_base_singleton",
    ),
    Method(
        "model_stock",
        (Parameter("filter_wise", bool, "shared", default=False),),
        base="required",
        min_inputs=3,
        optional_tensors="base_or_skip",
    ),
    Method(
        "arcee_fusion",
        base="required",
        min_inputs=2,
        max_inputs=2,
        optional_tensors="passthrough_singleton",
        randomised=True,
    ),
    Method(
        "sce",
        (
            Parameter("int8_mask", bool, "shared", default=False),
            Parameter("select_topk", float, "shared", 1.0),
        ),
        base="required",
        on_deltas=True,
    ),
    Method("ram", (_RAM_EPSILON,), base="required"),
    Method(
        "ramplus_tl",
        (Parameter("r", float, "shared", 0.1), Parameter("alpha", float, "shared", 0.2), _RAM_EPSILON),
        base="required",
    ),
    _task_arithmetic("task_arithmetic", normalize=False, rescale=False),
    _task_arithmetic("ties", normalize=True, rescale=False),
    _task_arithmetic("dare_ties", normalize=False, rescale=True, randomised=True),
    _task_arithmetic("dare_linear", normalize=False, rescale=True, randomised=True),
    _task_arithmetic("breadcrumbs", _GAMMA, normalize=False, rescale=False),
    _task_arithmetic("breadcrumbs_ties", _GAMMA, normalize=False, rescale=False),
    _task_arithmetic("della", _EPSILON, normalize=True, rescale=True, randomised=True),
    _task_arithmetic("della_linear", _EPSILON, normalize=False, rescale=True, randomised=True),
)

METHODS: Final[Mapping[str, Method]] = {method.name: method for method in _ALL}
"""mergekit's methods, by name."""
