"""Sweeps of the second study that nothing was measured for: the files that `wsmerge.sweep` writes, with made-up answers."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study.results import gather
from experiments.study.settings import FULL, PRIMARY_COST, Amounts
from experiments.study.sweeps import SWEEPS, sweep_folder
from wsmerge.steering.facts import CONDITIONS
from wsmerge.steering.sweep.hints import load_hints
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.measuring import Hints, Role
from wsmerge.steering.sweep.samples import Samples

K_AT_PRIMARY = 0.4
ONE_LAYER = "activations, one layer"
PASSAGES = 12
SPLITS: tuple[Split, Split] = ("validation", "test")
WORDINGS = {"validation": 4, "test": 8}
HINTED = {"plain": 0.0, "wrong hint": -1.6, "right hint": 1.6, "denial": -1.2}
"""What the user's words add to the margin of an item, in nats."""


@dataclass
class Makeup:
    """What methods do.

    Attributes:
        gains: by label, what k < 0 adds to the margin after a wrong hint at the cost of 0.04; of both signs for controls.
        losses: by label, what it takes from the margin of plain questions.
        knows: by how much the base prefers right answers.
        spoken: what weights add in spoken answers.
        prompt_cost: the KL of system prompts.
        unreached: labels that come to no more than half of a cost.
    """

    gains: Mapping[str, float] = field(default_factory=lambda: {"weights": 2.5, "plus pole": 0.9, "first token": 0.7})
    losses: Mapping[str, float] = field(default_factory=dict)
    knows: float = 1.2
    spoken: float = 1.5
    prompt_cost: float = 0.06
    unreached: frozenset[str] = frozenset({"first token"})


def write_study(
    out: Path, results: Path, makeup: Makeup, amounts: Amounts = FULL, sweeps: tuple[str, ...] = (*SWEEPS,)
) -> None:
    """Write sweeps of all seeds, and gather them."""
    for seed in amounts.seeds:
        for name in sweeps:
            write_sweep(out, name, seed, makeup, amounts)
            gather(out, name, seed, results)


def write_sweep(
    out: Path, name: str, seed: int, makeup: Makeup, amounts: Amounts = FULL, settings: Mapping[str, Any] | None = None
) -> None:
    """Write a sweep's journal and results: of settings, or of those that go by the name."""
    folder = sweep_folder(out, name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    settings = SWEEPS[name](amounts, seed) if settings is None else settings
    hints = settings["measures"]["facts"]["hints"]
    scorer = load_hints(Hints.model_validate(hints), folder)
    in_text, layers = "max_new_tokens" in hints, {ONE_LAYER: 14} if name == "activations" else {}
    points: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = [{"sweep": "digest"}]
    for label, k, cost, aimed in strengths(settings, seed, makeup):
        layer = layers.get(label)
        for split in SPLITS:
            at: dict[str, Any] = {"method": label, "strength": k, "split": split, "layer": layer, "only": None}
            drawn = np.random.default_rng([seed, *label.encode(), int(1e6 * cost), k > 0, split == "test"])
            figures = answers(
                len(scorer.items[split]), split, moved(label, k, cost, makeup, in_text=in_text), drawn, makeup
            )
            if in_text:
                del figures["facts margin"]
            else:
                del figures["facts valid"], figures["facts coherent"]
                figures["plain text"] = perplexity(cost)
            figures["KL"] = Samples.of(
                "distance", cost * np.linspace(0.7, 1.3, PASSAGES) * (1.1 if split == "test" else 1), "mean"
            )
            told = {figure: samples.to_json() for figure, samples in figures.items()}
            if layer is not None:
                rows.append({**at, "layer": layer - 4, "figures": {}})  # another that was tried
            if k:
                rows.append({**at, "only": "KL", "figures": {"KL": told["KL"]}})
            rows += [{**at, "measure": "facts", "figures": {}}, {**at, "figures": told}]
            aims = {"kl_aimed_at": [aimed]} if aimed else {}
            points.append({"method": label, "k": k, **aims, "split": split, "figures": {}})
    labels = dict.fromkeys(point["method"] for point in points if point["method"] != "base")
    at_primary = {
        point["method"]: point["k"]
        for point in points
        if PRIMARY_COST in point.get("kl_aimed_at", ()) and point["k"] < 0
    }
    picks = [{"method": label, "strength": at_primary["weights"] if label == "weights" else 0.0} for label in labels]
    made = {"settings": settings, "picks": picks, "layers": layers, "notes": [f"a note of {name}"], "points": points}
    (folder / "sweep.json").write_text(json.dumps(made))
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def strengths(
    settings: Mapping[str, Any], seed: int, makeup: Makeup
) -> Iterator[tuple[str, float, float, float | None]]:
    """Label, k, its cost, and the cost that was aimed at, of every point on one split."""
    yield "base", 0.0, 0.0, None
    kinds = settings["controls"].get("kinds", ())
    for method in settings["methods"]:
        label = method["label"]
        if "system_prompt" in method:
            yield from ((label, k, makeup.prompt_cost, None) for k in (-1.0, 1.0))
            continue
        if isinstance(method["k"], list):
            yield from ((label, k, PRIMARY_COST * (k / K_AT_PRIMARY) ** 2, None) for k in method["k"])
            continue
        for name in (label, *(f"{label}, random {kind} 1" for kind in kinds)):
            for sign in (-1, 1) if method["k"]["signs"] == "both" else (-1,):
                for aimed in method["k"]["kl"]:
                    cost = aimed * (0.5 if name in makeup.unreached else 1.0 + 0.01 * (seed % 3))
                    k = sign * K_AT_PRIMARY * math.sqrt(cost / PRIMARY_COST)
                    yield name, float(f"{k:.4g}"), cost, aimed


def moved(label: str, k: float, cost: float, makeup: Makeup, *, in_text: bool) -> dict[str, float]:
    """What a method adds to margins, by condition, with the noise of one as `noise`."""
    size = math.sqrt(cost / PRIMARY_COST) if k else 0.0
    gain = makeup.spoken if in_text else makeup.gains.get(label, 0.05)
    towards = 1 if "random" in label else -math.copysign(1, k)
    lost = -makeup.losses.get(label, 0.0) * size
    return {"wrong hint": gain * size * towards, "plain": lost, "right hint": lost, "noise": 0.15 * size}


def answers(
    count: int, split: str, added: Mapping[str, float], drawn: np.random.Generator, makeup: Makeup
) -> dict[str, Samples]:
    """Figures as a sweep names them; the base answers the same for every seed."""
    wordings = WORDINGS[split]
    clusters = np.array([(place, place % wordings) for place in range(count)])
    fixed = np.random.default_rng(count)
    base = makeup.knows + fixed.normal(size=count) + 0.4 * fixed.normal(size=(len(CONDITIONS), count))
    base += np.array([[HINTED[condition]] for condition in CONDITIONS])
    margins = base + np.array([[added.get(condition, 0.0)] for condition in CONDITIONS])
    margins += added["noise"] * drawn.normal(size=margins.shape)
    known = base[CONDITIONS.index("plain")] > 0
    found: dict[str, Samples] = {}
    for condition, values in zip(CONDITIONS, margins, strict=True):
        role: Role = "capability" if condition in {"plain", "right hint"} else "behaviour"
        right = (values > 0).astype(float)
        found[condition] = Samples.of(role, right, clusters=clusters)
        name = "" if condition == "wrong hint" else f"{condition} kept"
        found[name] = Samples.of("behaviour", np.where(known, right, np.nan), clusters=clusters)
    everywhere = np.tile(clusters, (len(CONDITIONS), 1))
    found["valid"] = Samples.of("valid", np.abs(margins).ravel() > 0.3, clusters=everywhere)
    found["coherent"] = Samples.of("coherence", np.abs(margins).ravel() > 0.1, clusters=everywhere)
    found["margin"] = Samples.of("behaviour", margins[CONDITIONS.index("wrong hint")], "mean", clusters)
    return {f"facts {name}".strip(): samples for name, samples in found.items()}


def perplexity(cost: float) -> Samples:
    """Of four passages."""
    tokens = np.array([60.0, 45.0, 52.0, 70.0])
    return Samples("perplexity", "perplexity", tokens * (3.2 + 0.1 * np.arange(4) + 0.2 * cost), tokens)
