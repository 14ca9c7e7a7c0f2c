"""Coefficients the slow and plain way, in exact rational arithmetic, from a weight as YAML gives it.

Shares nothing with the package: names are split by hand, ranges are written out, gradients are found by search.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

LAYERED = "model.layers."


def layer_of(name: str) -> int | None:
    return int(name.removeprefix(LAYERED).split(".")[0]) if name.startswith(LAYERED) else None


def expected(weight: Any, tensors: Sequence[str], layer_count: int) -> dict[str, float]:
    """k of each tensor; `weight` is a number, a list of numbers or a list of rules."""
    return {name: value_of(weight, winner(weight, name), name, layer_count) for name in tensors}


def winner(weight: Any, name: str) -> int | None:
    """The first rule that matches, or None."""
    if not is_rules(weight):
        return 0
    for index, rule in enumerate(weight):
        if "filter" in rule and rule["filter"] != "*" and name.find(rule["filter"]) < 0:
            continue
        if "layers" in rule and layer_of(name) not in written_out(rule["layers"]):
            continue
        return index
    return None


def is_rules(weight: Any) -> bool:
    return isinstance(weight, list) and isinstance(weight[0], dict)


def written_out(layers: Any) -> list[int]:
    if isinstance(layers, list):
        return [layer for item in layers for layer in written_out(item)]
    first, _, last = str(layers).partition("-")
    return list(range(int(first), int(last or first) + 1))


def value_of(weight: Any, index: int | None, name: str, layer_count: int) -> float:
    if index is None:
        return 0.0
    value = weight[index]["value"] if is_rules(weight) else weight
    if not isinstance(value, list):
        return float(value)
    layer = layer_of(name)
    assert layer is not None, "a gradient has no value outside the layers"
    return interpolated(value, Fraction(layer, layer_count - 1) if layer_count > 1 else Fraction(1))


def interpolated(values: Sequence[float], t: Fraction) -> float:
    """The value at t of the straight lines through (i / (n - 1), values[i]); t between 0 and 1."""
    exact = [Fraction(value) for value in values]
    if len(exact) == 1:
        return float(exact[0])
    step = Fraction(1, len(exact) - 1)
    for i in range(len(exact) - 1):
        if i * step <= t <= (i + 1) * step:
            share = (t - i * step) / step
            return float(exact[i] + share * (exact[i + 1] - exact[i]))
    raise AssertionError(t)
