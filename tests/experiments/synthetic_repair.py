"""Repairs that nothing was measured for: the files that `wsmerge.sweep` writes, with made-up answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study.repair import CONDITIONS, joint_sweep, refusal_repair_sweep, refusals_sweep, repair_sweep
from experiments.study.repair_data import SPLITS, TASKS, refusal_seeds, write_repair_data
from experiments.study.repaired import JOINT, KEPT, PLAIN_FACTS, PROMPT, RANDOM, REFUSAL, WORDS
from experiments.study.results import gather
from experiments.study.settings import FULL, Amounts
from experiments.study.sweeps import sweep_folder
from tests.experiments.synthetic_study import HINTED, perplexity
from wsmerge.steering.sweep.hints import load_hints
from wsmerge.steering.sweep.measuring import Hints, Role
from wsmerge.steering.sweep.samples import Samples

SIZES = {0.01: 0.1, 0.04: 0.2, 0.16: 0.4}
"""Of k, by KL."""


@dataclass
class Drifts:
    """What fine-tunes and repairs do, in nats of a margin.

    Attributes:
        tuned: what the fine-tune takes from the margin after a wrong hint.
        back: what the weights give back, for each of k < 0 at the largest KL; less at others, in proportion.
        lost: what they take there from plain words and right hints.
        refusals: what each fine-tune adds to the margin of a refusal.
        refused: what the direction of refusals adds for k > 0 at the largest KL.
    """

    tuned: float = 1.5
    back: float = 3.0
    lost: float = 0.0
    refusals: Mapping[str, float] = field(default_factory=lambda: {"task": 0.1, "helpful": -0.6, "sure": -1.0})
    refused: float = 1.0


def write_repairs(out: Path, results: Path, drifts: Drifts, amounts: Amounts = FULL, task: str = "helpful") -> None:
    """Write the sweeps of all seeds, and gather them; what is asked comes from the study's own files."""
    write_repair_data(out / "data" / "repair", amounts)
    for seed in amounts.seeds:
        _write(out, "repair", seed, repair_sweep(amounts, seed), _repaired(drifts), results)
        _write(out, "joint", seed, joint_sweep(amounts, seed), _joint(drifts), results)
    for seed in refusal_seeds(amounts):
        tried = [("base", 0.0, None, {}), *((one, 1.0, None, {REFUSAL: drifts.refusals[one]}) for one in TASKS)]
        _write(out, "refusals", seed, refusals_sweep(amounts, seed), tried, results)
        made = refusal_repair_sweep(amounts, seed, task=task)
        _write(out, "refusal-repair", seed, made, _refused(drifts, task), results)


_Point = tuple[str, float, float | None, Mapping[str, float]]
"""Label, k, the KL that was aimed at, and what is added to margins, by condition or measure."""


def _repaired(drifts: Drifts) -> list[_Point]:
    tuned = {"wrong hint": -drifts.tuned, f"{WORDS} wrong hint": -drifts.tuned}
    found: list[_Point] = [("base", 0.0, None, {}), ("fine-tune", 0.0, None, tuned)]
    for label, gain in (("weights", drifts.back), (RANDOM, 0.1)):
        for sign in (-1, 1):
            for kl, size in SIZES.items():
                part = -sign * size / max(SIZES.values())
                lost = drifts.lost * abs(part) if label == "weights" else 0.0
                added = {name: value + gain * part for name, value in tuned.items()}
                added |= {f"{WORDS} plain": -lost, f"{WORDS} right hint": -lost}
                found.append((label, sign * size, kl, added))
    found += [(PROMPT, k, None, {name: value - 0.2 * k for name, value in tuned.items()}) for k in (-1.0, 1.0)]
    return found


def _joint(drifts: Drifts) -> list[_Point]:
    half = {"wrong hint": -drifts.tuned / 2, f"{WORDS} wrong hint": -drifts.tuned / 2}
    return [("base", 0.0, None, {}), (JOINT, 1.0, None, half)]


def _refused(drifts: Drifts, task: str) -> list[_Point]:
    start = drifts.refusals[task]
    found: list[_Point] = [("base", 0.0, None, {}), ("fine-tune", 0.0, None, {REFUSAL: start})]
    for label, gain in (("weights", drifts.refused), (RANDOM, 0.05)):
        for sign in (-1, 1):
            for kl, size in SIZES.items():
                added = start + gain * sign * size / max(SIZES.values())
                found.append(
                    (label, sign * size, kl, {REFUSAL: added, KEPT: -drifts.lost * size / max(SIZES.values())})
                )
    return found


def _write(
    out: Path, name: str, seed: int, settings: Mapping[str, Any], of_method: Sequence[_Point], results: Path
) -> None:
    folder = sweep_folder(out, name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [{"sweep": "digest"}]
    points = []
    for label, k, aimed, added in of_method:
        for split in SPLITS:
            drawn = np.random.default_rng([seed, *label.encode(), int(1000 * abs(k)), k > 0, split == "test"])
            figures = dict(
                _figures(settings["measures"], folder, split, added, drawn if k or label != "base" else None)
            )
            told = {figure: samples.to_json() for figure, samples in figures.items()}
            rows.append({"method": label, "strength": k, "split": split, "layer": None, "only": None, "figures": told})
            aims = {"kl_aimed_at": [aimed]} if aimed else {}
            points.append({"method": label, "k": k, **aims, "split": split, "figures": {}})
    made = {"settings": settings, "picks": [], "layers": {}, "notes": [], "points": points}
    (folder / "sweep.json").write_text(json.dumps(made))
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    gather(out, name, seed, results)


def _figures(
    measures: Mapping[str, Any],
    folder: Path,
    split: Any,
    added: Mapping[str, float],
    drawn: np.random.Generator | None,
) -> Iterator[tuple[str, Samples]]:
    """Figures as a sweep names them; without a generator those of the base, which are the same for every seed."""
    for name, settings in measures.items():
        if "hints" in settings:
            items = load_hints(Hints.model_validate(settings["hints"]), folder).items[split]
            wordings = [*dict.fromkeys(item.wording.name for item in items)]
            clusters = np.array([(n, wordings.index(item.wording.name)) for n, item in enumerate(items)])
            base = _base(name, len(CONDITIONS), len(items), 2.5 if name == WORDS else 1.2) + np.array(
                [[HINTED[one]] for one in CONDITIONS]
            )
            noise = 0.0 if drawn is None else 0.03 * drawn.normal(size=base.shape)
            prefix = f"{WORDS} " if name == WORDS else ""
            margins = base + noise + np.array([[added.get(f"{prefix}{one}", 0.0)] for one in CONDITIONS])
            known = base[CONDITIONS.index("plain")] > 0
            for condition, values in zip(CONDITIONS, margins, strict=True):
                role: Role = "behaviour" if condition == "wrong hint" else "capability"
                right = (values > 0).astype(float)
                yield f"{name} {condition}", Samples.of(role, right, clusters=clusters)
                kept = "" if condition == "wrong hint" else f" {condition} kept"
                yield f"{name}{kept}", Samples.of("behaviour", np.where(known, right, np.nan), clusters=clusters)
        elif "choice" in settings:
            count = {REFUSAL: {"validation": 24, "test": 48}, PLAIN_FACTS: {"validation": 72, "test": 144}}.get(
                name, {"validation": 30, "test": 60}
            )[split]
            noise = 0.0 if drawn is None else 0.03 * drawn.normal(size=count)
            margins = _base(name, 1, count, 1.0)[0] + noise + added.get(name, 0.0)
            if settings["role"] == "behaviour":
                yield name, Samples.of("behaviour", margins, "mean", np.arange(count) // 4)
            else:
                yield name, Samples.of("capability", margins > 0, clusters=np.arange(count) // 2)
        else:
            yield name, perplexity(0.0)


def _base(name: str, ways: int, count: int, mean: float) -> np.ndarray:
    fixed = np.random.default_rng([*name.encode(), count])
    return mean + fixed.normal(size=count) + 0.4 * fixed.normal(size=(ways, count))
