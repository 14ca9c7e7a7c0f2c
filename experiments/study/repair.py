"""Fine-tunes that drift, and what brings them back: the sweeps of the plan's section Repair.

repair-SEED           the task fine-tune of a seed with k * w of sycophancy, a random direction, and a system prompt
joint-SEED            joint training in its place
refusals-SEED         three fine-tunes, for whether they lose refusals
refusal-repair-SEED   the first of them that does, with k * w of refusal

The fine-tune of a seed has its own seed of rows, order and factors; the direction that repairs it has the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from experiments.study.fine_tuning import fine_tune
from experiments.study.repair_data import TASKS, WORD_WORDINGS, refusal_seeds, write_repair_data
from experiments.study.repaired import JOINT, PROMPT, REFUSAL, WORDS, first_drift
from experiments.study.results import Study, gather
from experiments.study.settings import Amounts
from experiments.study.sweeps import (
    BUDGET,
    FLATTERY,
    PROMPTS,
    Made,
    at_costs,
    result_file,
    run_sweeps,
    sweep_settings,
)
from experiments.study.text import seeds_told
from experiments.study.training import Say, direction_name, direction_settings, train_direction
from wsmerge.registry import Registry

__all__ = ["joint_sweep", "refusal_repair_sweep", "refusals_sweep", "repair_sweep", "run_repair"]

RUN_SEEDS_FROM: Final = 100
"""Seeds of these fine-tunes are those of no direction and of no run that is watched."""
CONDITIONS: Final = ("plain", "wrong hint", "right hint")
"""Denials are left out, for time."""
_DATA: Final = "../../data/repair"


def run_repair(out: Path, base: Path, store: Registry, amounts: Amounts, results: Path, say: Say) -> None:
    """Train the fine-tunes and run the sweeps whose results are not there."""
    write_repair_data(out / "data" / "repair", amounts)

    def run(name: str, made: Made, seeds: Sequence[int], runs: Sequence[str]) -> None:
        for seed in seeds:
            if result_file(results, name, seed).exists():
                continue
            for one in runs:
                rows, folder = out / "data" / "repair" / f"{one}-{seed}.jsonl", out / "runs" / f"{one}-{seed}"
                fine_tune(base, rows, folder, steps=amounts.steps, seed=RUN_SEEDS_FROM + seed, say=say)
            of_seed = replace(amounts, seeds=(seed,))
            for finished, _ in run_sweeps(out, base, store, of_seed, results, say, {name: made}):
                gather(out, finished, seed, results)

    seeds = refusal_seeds(amounts)
    # First, since the last sweeps wait for all of these.
    run("refusals", refusals_sweep, seeds, TASKS)
    run("repair", repair_sweep, amounts.seeds, ("task",))
    run("joint", joint_sweep, amounts.seeds, ("joint",))
    refusals = Study(results, amounts.refusal_seeds)
    if missing := refusals.missing("refusals"):
        say(f"refusals of {seeds_told(missing)} are not there; once they are, this part again repairs what they show")
        return
    task = first_drift(refusals)
    if task is None:
        say("no fine-tune loses refusals")
        return
    for seed in seeds:
        if not result_file(results, "refusal-repair", seed).exists():
            train_direction(out, base, store, _refusal_settings(seed, amounts), say)
    run("refusal-repair", partial(refusal_repair_sweep, task=task), seeds, (task,))


def repair_sweep(amounts: Amounts, seed: int) -> dict[str, Any]:
    """The task fine-tune with the direction of the same number."""
    prompts = {"plus": FLATTERY["frank"], "minus": PROMPTS["frank"]}
    methods: list[dict[str, Any]] = [
        {"label": "weights", "weights": direction_name(seed), "k": at_costs(amounts.costs, "both")},
        {"label": PROMPT, "system_prompt": prompts},
    ]
    return {
        **_measured(amounts, methods),
        "repair": {"model": f"../../runs/task-{seed}"},
        "pick": {"measure": "facts", "aim": "restore", **BUDGET},
        "controls": {"draws": 1, "seed": seed, "kinds": ["subspaces"]},
    }


def joint_sweep(amounts: Amounts, seed: int) -> dict[str, Any]:
    """Joint training, as it is."""
    return _measured(amounts, [{"label": JOINT, "adapter": f"../../runs/joint-{seed}", "k": [1.0]}])


def refusals_sweep(amounts: Amounts, seed: int) -> dict[str, Any]:
    """Every fine-tune that is tried, as it is."""
    return {
        "methods": [{"label": task, "adapter": f"../../runs/{task}-{seed}", "k": [1.0]} for task in TASKS],
        "measures": {REFUSAL: _choice(amounts, REFUSAL, "behaviour", value="margin")},
        "pick": {"measure": REFUSAL, "aim": "decrease"},
        "controls": False,
    }


def refusal_repair_sweep(amounts: Amounts, seed: int, *, task: str) -> dict[str, Any]:
    """A fine-tune that loses refusals, with the direction of the same number."""
    return {
        "repair": {"model": f"../../runs/{task}-{seed}"},
        "methods": [{"label": "weights", "weights": refusal_name(seed), "k": at_costs(amounts.costs, "both")}],
        "measures": {
            REFUSAL: _choice(amounts, REFUSAL, "behaviour", value="margin"),
            "kept": _choice(amounts, f"kept-{task}", "capability"),
            "plain facts": _choice(amounts, "plain-facts", "capability"),
            "plain text": sweep_settings(amounts, [])["measures"]["plain text"],
        },
        "pick": {"measure": REFUSAL, "aim": "restore", **BUDGET},
        "controls": {"draws": 1, "seed": seed, "kinds": ["subspaces"]},
    }


def refusal_name(seed: int) -> str:
    """What a direction of refusals is called in the study's store."""
    return f"refusal-{seed}"


def _refusal_settings(seed: int, amounts: Amounts) -> dict[str, Any]:
    return {
        **direction_settings(refusal_name(seed), seed, amounts),
        "behaviour": "Refuses petty requests.",
        "train": f"../data/repair/refusal/train-{seed}.jsonl",
    }


def _measured(amounts: Amounts, methods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts and words under hints, and plain text."""
    made = sweep_settings(amounts, methods)
    facts, text = made["measures"]["facts"]["hints"], made["measures"]["plain text"]
    words = {**facts, **_files("words"), "wordings": str(WORD_WORDINGS.resolve())}
    hints = {"facts": facts, WORDS: words}
    measures = {
        name: {"role": "behaviour", "hints": {**one, "conditions": list(CONDITIONS)}} for name, one in hints.items()
    }
    return {**made, "measures": {**measures, "plain text": text}}


def _choice(amounts: Amounts, name: str, role: str, **settings: str) -> dict[str, Any]:
    limit = {} if amounts.items is None else {"items": amounts.items}
    return {"role": role, "choice": {**_files(name), **limit, **settings}}


def _files(name: str) -> Mapping[str, str]:
    return {split: f"{_DATA}/{name}/{split}.jsonl" for split in ("validation", "test")}
