"""What of the weights moves the main figure: parts of a direction, each at the same cost, and bfloat16 against float32.

parts-SEED      the direction whole, thirds of its layers, attention and MLP alone, cut ranks, growing with depth, with another
float32-SEED    the whole direction at the k of parts-SEED, in float32
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.study.data import write_lines
from experiments.study.methods import AGAINST, MAIN, PLAIN, RIGHT_HINT, Measured, Methods
from experiments.study.ranks import cut_name, publish_cut
from experiments.study.results import gather, read
from experiments.study.settings import PRIMARY_COST, Amounts
from experiments.study.statistics import paired
from experiments.study.sweeps import FACTS, Made, result_file, run_sweeps, sweep_settings
from experiments.study.text import listed, percent, points, seeds_told, table
from experiments.study.training import DIRECTIONS, Say, direction_name
from wsmerge.errors import UsageError
from wsmerge.registry import Registry

__all__ = [
    "PARTS_SEEDS",
    "RANKS",
    "WHOLE",
    "float32_sweep",
    "parts_section",
    "parts_seeds",
    "parts_sweep",
    "run_parts",
    "write_few",
]

PARTS_SEEDS: Final = (0, 1, 2)
RANKS: Final = (1, 2, 4, 8)
WHOLE: Final = "whole"
_PARTS: Final = "parts"
_FLOAT32: Final = "float32"
_FEW: Final = "few-validation.jsonl"
_FEW_FACTS: Final = 8
_THIRDS: Final = ("0-9", "10-19", "20-29")
"""Of the model's 30 layers."""


def parts_seeds(amounts: Amounts) -> tuple[int, ...]:
    """The seeds that parts are measured of."""
    return tuple(seed for seed in amounts.seeds if seed in PARTS_SEEDS)


def run_parts(out: Path, base: Path, store: Registry, amounts: Amounts, results: Path, say: Say) -> None:
    """Cut the directions, and run the sweeps whose results are not there."""
    write_few(out / "data")
    for seed in parts_seeds(amounts):
        for rank in RANKS:
            publish_cut(store, direction_name(seed), rank)
    # Float32 takes the strength of the other one, which is gathered before it is begun.
    made: dict[str, Made] = {_PARTS: parts_sweep, _FLOAT32: partial(float32_sweep, results=results)}
    for name, seed in run_sweeps(out, base, store, replace(amounts, seeds=parts_seeds(amounts)), results, say, made):
        gather(out, name, seed, results)


def parts_sweep(amounts: Amounts, seed: int) -> dict[str, Any]:
    """Every part of one seed's direction, at the cost that methods are compared at."""
    k = {"kl": [PRIMARY_COST], "signs": "minus"}
    return _settings(amounts, [{"label": label, "weights": one, "k": k} for label, one in _weights(seed).items()])


def float32_sweep(amounts: Amounts, seed: int, *, results: Path) -> dict[str, Any]:
    """The whole direction at the k that bfloat16 has.

    Raises:
        UsageError: there is none, since the sweep of parts found no strength.
    """
    file = result_file(results, _PARTS, seed)
    point = read(file).aimed(WHOLE, PRIMARY_COST, AGAINST, "test")
    if point is None:
        raise UsageError(f"has no strength of {WHOLE}", where=str(file), hint="measure the parts of this seed first")
    method = {"label": WHOLE, "weights": direction_name(seed), "k": [point.k]}
    return {**_settings(amounts, [method]), "dtype": "float32"}


def write_few(folder: Path) -> None:
    """Write the first validation facts: nothing is chosen here, and all of them would take a third of the time."""
    lines = (FACTS / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    write_lines(folder / _FEW, lines[:_FEW_FACTS])


def _settings(amounts: Amounts, methods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    made = sweep_settings(amounts, methods)
    made["measures"]["facts"]["hints"]["validation"] = f"../../data/{_FEW}"
    return made


def _weights(seed: int) -> dict[str, Any]:
    """Directions and their coefficients, as in recipes."""
    name = direction_name(seed)
    formality = str((DIRECTIONS / "formality").resolve())
    return {
        WHOLE: name,
        **{f"layers {third}": {name: [{"layers": third, "value": 1.0}]} for third in _THIRDS},
        "attention": {name: [{"filter": "self_attn", "value": 1.0}]},
        "MLP": {name: [{"filter": "mlp", "value": 1.0}]},
        **{f"rank {rank}": cut_name(name, rank) for rank in RANKS},
        "growing with depth": {name: [{"value": [0.0, 2.0]}]},
        "half, and half of formality": {name: 0.5, formality: 0.5},
    }


def parts_section(methods: Methods, amounts: Amounts) -> Iterator[str]:
    """The report's lines of it."""
    yield "## What moves\n"
    sides = {label: side for label in _weights(0) if (side := methods.at(label, sweep=_PARTS)) is not None}
    if not sides:
        yield "Not yet run.\n"
        return
    seeds = sorted({seed for side in sides.values() for seed in side.seeds})
    missing = [seed for seed in parts_seeds(amounts) if seed not in seeds]
    yield (
        f"Parts of the weights of {seeds_told(seeds)} alone, each at the k of its own at which the KL is {PRIMARY_COST:g} ({_kls(sides)}); changes in "
        f"points, and k as the mean over seeds. Nothing is tested.{f' Not yet run: {seeds_told(missing)}.' if missing else ''}\n"
    )
    told = [
        (label if side.reaches(PRIMARY_COST) else f"{label} (KL {side.kl():.3f})", f"{np.mean(side.ks):+.2f}", *_changes(side))
        for label, side in sides.items()
    ]  # fmt: skip
    names = ("", "k", "main figure", "plain", "right hints")
    half = -(-len(told) // 2)
    beside = [*told[half:], ("",) * len(names)][:half]
    # Two columns of rows, since a report is read and not only looked up.
    yield from table((*names, *names), [(*one, *other) for one, other in zip(told[:half], beside, strict=True)])
    yield from _float32(methods)


def _changes(side: Measured) -> tuple[str, ...]:
    return tuple(points(side.change(name)) for name in (MAIN, PLAIN, RIGHT_HINT))


def _kls(sides: dict[str, Measured]) -> str:
    found = [side.kl("test") for side in sides.values()]
    return f"on other text {min(found):.3f} to {max(found):.3f}"


def _float32(methods: Methods) -> Iterator[str]:
    """How far float32 answers otherwise than bfloat16 at one k, over the items that both bases are right on when plain."""
    whole = methods.at(WHOLE, sweep=_PARTS)
    ks = {} if whole is None else dict(zip(whole.seeds, whole.ks, strict=True))
    told = []
    for name, strengths in (("base", dict.fromkeys(ks, 0.0)), ("steered model", ks)):
        ours, theirs = (methods.at_ks(WHOLE, strengths, sweep) for sweep in (_FLOAT32, _PARTS))
        if ours is None or theirs is None:
            yield "Float32 has not been measured yet.\n"
            return
        theirs = theirs.of_seeds(ours.seeds)
        change = paired(ours.figure(MAIN), theirs.figure(MAIN)).interval
        told.append(
            f"{percent(ours.value(MAIN))} for the {name} instead of {percent(theirs.value(MAIN))}, {points(change)} points apart"
        )
        seeds = ours.seeds
    yield f"In float32 and not bfloat16, at the same k of {seeds_told(seeds)}, the main figure is {listed(told)}.\n"
