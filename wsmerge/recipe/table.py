"""Coefficients as a table: one row for each run of layers and set of modules that share a coefficient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from wsmerge.core.layers import layer_position
from wsmerge.recipe.coefficients import Applied, Coefficients

__all__ = ["Row", "coefficient_table"]


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors that share a coefficient.

    Attributes:
        stack: the layer stack, for example `model.layers`; empty for tensors of no layer.
        layers: `8`, or `8-15` (inclusive); empty for tensors of no layer.
        modules: `self_attn.q_proj`; `self_attn` where all its modules are meant, `all` where all of the layer are.
            Parameters by name where those of one module differ.
        tensors: how many they are.
        k: their coefficient.
        rule: what in the weight gave it, or `unmatched`.
    """

    stack: str
    layers: str
    modules: tuple[str, ...]
    tensors: int
    k: float
    rule: str


# What one layer holds: its parameters by the coefficient that they share.
_Shares = tuple[tuple[Applied, tuple[str, ...]], ...]


def coefficient_table(coefficients: Coefficients) -> tuple[Row, ...]:
    """The table: tensors of no layer first, then each stack with its layers ascending; equal neighbours are one row."""
    layers: dict[str, dict[int, dict[str, Applied]]] = defaultdict(lambda: defaultdict(dict))
    for name, applied in coefficients.by_tensor.items():
        stack, layer = layer_position(name) or ("", -1)
        parameter = name.removeprefix(f"{stack}.{layer}." if stack else "model.")
        layers[stack][layer][parameter] = applied
    rows: list[Row] = []
    for stack in sorted(layers):
        shared = ((layer, _shares(layers[stack][layer])) for layer in sorted(layers[stack]))
        for run in _runs(shared):
            rows += _rows(stack, run)
    return tuple(rows)


def _shares(parameters: dict[str, Applied]) -> _Shares:
    by_applied: dict[Applied, list[str]] = defaultdict(list)
    for parameter, applied in parameters.items():
        by_applied[applied].append(parameter)
    return tuple((applied, tuple(sorted(names))) for applied, names in by_applied.items())


def _runs(shared: Iterable[tuple[int, _Shares]]) -> Iterable[list[tuple[int, _Shares]]]:
    """Split ascending layers where one is missing or holds something else than the one before it."""
    numbered = ((index, layer, held) for index, (layer, held) in enumerate(shared))
    for _, run in groupby(numbered, lambda item: (item[1] - item[0], frozenset(item[2]))):
        yield [(layer, held) for _, layer, held in run]


def _rows(stack: str, run: list[tuple[int, _Shares]]) -> Iterable[Row]:
    (first, shares), last = run[0], run[-1][0]
    layers = "" if not stack else str(first) if first == last else f"{first}-{last}"
    everything = [name for _, names in shares for name in names]
    for applied, names in shares:
        modules = ("all",) if stack and len(shares) == 1 else _modules(names, everything)
        yield Row(stack, layers, modules, len(names) * len(run), applied.k, applied.rule)


def _modules(names: tuple[str, ...], everything: list[str]) -> tuple[str, ...]:
    """The shortest list that means `names` among `everything` in the same layer."""
    others = set(everything) - set(names)
    shown: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(1, len(parts)))
        free = (prefix for prefix in prefixes if not any(other.startswith(f"{prefix}.") for other in others))
        shown[next(free, name)] = None
    return tuple(shown)
