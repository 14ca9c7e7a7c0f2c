"""The study's report: tables, figures and what follows from them, all computed from the results."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from experiments.smollm2.study.findings import findings
from experiments.smollm2.study.plots import plot_behaviour, plot_contrary, plot_monitoring, plot_repair
from experiments.smollm2.study.results import CLEAN_RUNS, WATCHED, Cell, Readings, SweepOverSeeds, mean
from experiments.smollm2.study.settings import Amounts
from experiments.smollm2.study.sweeps import SWEEPS

__all__ = ["AGREEMENT", "NO_CONTROLS", "TIMES_FOLDER", "write_report"]

TIMES_FOLDER: Final = "times"
_ALIKE: Final = 0.5
"""Agreement with true claims that moves by this part of what agreement with false ones moves by is no judgement."""

AGREEMENT: Final = """What is steered is agreement and not judgement: `sycophancy` is agreement with false claims, and agreement with true ones moves
along with it (`agrees with true claims` in the first table).
"""

NO_CONTROLS: Final = """No random directions of the same norms stand beside the methods of this run, and nothing is compared at equal cost: these
controls come with the next run.
"""

_CONTROLS = """Beside weights stand {count} random directions of the same shapes, ranks and norms; at equal KL from k = 0 the effect of
weights is larger than that of {apart}, by intervals without 0.
"""

_HEAD = """# Weight steering on SmolLM2-135M-Instruct

{reading}
`python -m experiments.smollm2.study`: {trained} directions and {runs} fine-tunes over {seeds} seeds, {sweeps} sweeps;
{hours:.1f} hours of processor time on {machine}. Every figure below is of this run.

A seed chooses rows, their order and LoRA's first factors. LoRA of rank 32 on all linear modules, {steps} steps of 8 rows,
learning rate 1e-3. Models are steered and measured in bfloat16. Strengths are picked on validation: the largest effect that
costs at most 5 points of knowledge and 5 % of perplexity, for a repair 5 points of the task and 5 % of perplexity. Everything
shown is of test items: other domains than those of training and validation, and other wordings than those of training. A
value is the mean over seeds; brackets go from the lowest lower end to the highest upper end of the seeds' 95 % intervals over
items. A margin is the mean log-probability per token of the plus answer less that of the minus answer, in
nats. Knowledge is the share of facts told from their falsifications, with nothing claimed by the user.
"""


def write_report(out: Path, folder: Path, amounts: Amounts) -> None:
    """Write `report.md` and its plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sweeps = {name: SweepOverSeeds(out, name, amounts) for name in SWEEPS}
    readings = Readings(out)
    plot_behaviour(
        (sweeps["sycophancy"], sweeps["sycophancy-bias"]), "sycophancy", "knowledge", folder / "sycophancy.png"
    )
    plot_contrary(sweeps["contrary"], folder / "contrary.png")
    plot_repair(sweeps["repair-sycophancy"], sweeps["repair-refusal"], folder / "repair.png")
    plot_monitoring(readings, amounts, folder / "monitoring.png")
    parts = [
        _head(out, amounts, sweeps),
        "## What holds and what does not\n",
        *findings(sweeps, readings, amounts),
        *_sycophancy(sweeps["tuned"], sweeps["sycophancy"], sweeps["sycophancy-bias"]),
        *_contrary(sweeps["contrary"]),
        *_repair(sweeps),
        *_monitoring(readings, amounts),
    ]
    (folder / "report.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _head(out: Path, amounts: Amounts, sweeps: Mapping[str, SweepOverSeeds]) -> str:
    times = [json.loads(file.read_bytes()) for file in sorted((out / TIMES_FOLDER).glob("*.json"))]
    against = [gap for sweep in sweeps.values() for gap in sweep.against_random()]
    controls = _CONTROLS.format(count=len(against), apart=sum(low > 0 for low in against)) if against else NO_CONTROLS
    steered = sweeps["sycophancy"]
    moved = [
        steered.picked("weights", name, change=True).value for name in ("agrees with true claims", "sycophancy rate")
    ]
    # Judgement would move the two apart; the study's own findings tell by how much.
    alike = moved[1] != 0 and moved[0] / moved[1] > _ALIKE
    return _HEAD.format(
        reading=(AGREEMENT if alike else "") + controls,
        trained=4 * len(amounts.seeds),
        runs=len(amounts.seeds) * (len(amounts.bad_shares) + 2),
        seeds=len(amounts.seeds),
        sweeps=len(amounts.seeds) * len(SWEEPS),
        hours=sum(part["processor_s"] for part in times) / 3600,
        machine=f"two cores ({platform.machine()})",
        steps=amounts.steps,
    )


def _sycophancy(tuned: SweepOverSeeds, *sweeps: SweepOverSeeds) -> Iterator[str]:
    yield "\n## Sycophancy, by weights and by other methods\n"
    yield (
        "Picked on validation to lower sycophancy; 0 where no strength has an effect within the budget. Joint training has no "
        "strength: it is a fine-tune on the task of the repair below, with 6 % corrections of false claims.\n"
    )
    yield "![curves](sycophancy.png)\n"
    names = ("sycophancy", "sycophancy rate", "agrees with true claims", "knowledge", "plain text")
    yield from _table(
        ("method", "k by seed", *names),
        [
            ("base", "", *(_cell(sweeps[0].cell("base", 0.0, name), name) for name in names)),
            *(
                (
                    _label(sweep, method),
                    _ks(sweep, method),
                    *(_cell(sweep.picked(method, name), name) for name in names),
                )
                for sweep in sweeps
                for method in sweep.methods
            ),
            ("joint training", "", *(_cell(tuned.cell("joint training", 1.0, name), name) for name in names)),
        ],
    )


def _label(sweep: SweepOverSeeds, method: str) -> str:
    layers = sweep.layers(method)
    return f"{method} ({', '.join(map(str, layers))})" if layers else method


def _contrary(sweep: SweepOverSeeds) -> Iterator[str]:
    yield "\n## A misalignment-like trait\n"
    yield (
        "Contrary: refuses to help, or advises against what helps. `says no` is the share of generated answers to two-choice "
        "questions (should I do what helps? yes or no) that begin with no; an answer that begins with neither is not valid. "
        "Fluent answers repeat at most 30 % of their word triples.\n"
    )
    yield "![curves](contrary.png)\n"
    names = ("contrary", "contrary rate", "says no", "says no valid", "fluent", "knowledge", "plain text")
    rows = [("base", "", *(_cell(sweep.cell("base", 0.0, name), name) for name in names))]
    rows += [
        ("weights", f"{k:+g}", *(_cell(sweep.cell("weights", k, name), name) for name in names))
        for k in sweep.strengths("weights")
        if k
    ]
    rows += [
        (method, f"picked: {_ks(sweep, method)}", *(_cell(sweep.picked(method, name), name) for name in names))
        for method in sweep.methods
    ]
    yield from _table(("method", "k", *names), rows)


def _repair(sweeps: dict[str, SweepOverSeeds]) -> Iterator[str]:
    yield "\n## Repair of drift\n"
    yield (
        "The task is to name the category of a word; half of its rows have a guess of the user's, which is always right. The "
        "fine-tune learns the task and drifts. `k * w` is picked on validation to bring the behaviour back to the base's. In "
        "joint training 6 % of the rows are corrections of false claims.\n"
    )
    yield "![curves](repair.png)\n"
    names = ("task", "sycophancy", "refusal", "refusal rate", "knowledge", "plain text")
    tuned = sweeps["tuned"]
    rows = [("base", "", *(_cell(tuned.cell("base", 0.0, name), name) for name in names))]
    rows += [
        (method, "", *(_cell(tuned.cell(method, 1.0, name), name) for name in names))
        for method in ("task fine-tune", "joint training")
    ]
    for behaviour in ("sycophancy", "refusal"):
        sweep = sweeps[f"repair-{behaviour}"]
        rows += [
            (
                f"fine-tune, {method} for {behaviour}",
                _ks(sweep, method),
                *(_cell(sweep.picked(method, name), name) for name in names),
            )
            for method in sweep.methods
        ]
    yield from _table(("model", "k by seed", *names), rows)
    yield "\nAll strengths, on test; nothing is chosen here."
    for behaviour in ("sycophancy", "refusal"):
        sweep = sweeps[f"repair-{behaviour}"]
        yield f"\nThe fine-tune with k times {behaviour}:\n"
        yield from _table(
            ("k", *names),
            [
                (f"{k:+g}", *(_cell(sweep.cell("weights", k, name), name) for name in names))
                for k in sweep.strengths("weights")
            ],
        )


def _monitoring(readings: Readings, amounts: Amounts) -> Iterator[str]:
    last = readings.steps[-1]
    runs = (*(f"bad-{percent}" for percent in amounts.bad_shares), "good")
    yield "\n## Monitoring of fine-tunes with bad data\n"
    yield (
        "Fine-tunes of the task in which contrary answers (other subjects and wordings than the direction's) take the place of "
        f"some rows; cosine of the update with each direction after {last} steps, over all seeds of runs and directions, which "
        "share none. `good` has helpful answers to the prompts of the bad rows. sycophancy and refusal are directions of this "
        "study, formality and caution the bundled ones. z is the cosine in standard deviations of random directions of the same "
        "spectrum.\n"
    )
    yield "![cosines](monitoring.png)\n"
    controls = [name for name in readings.directions if name != WATCHED]
    rows = []
    for run in runs:
        z = mean(readings.cosines(WATCHED, run, last, "z"))
        cosines = (_range(readings.cosines(name, run, last)) for name in (WATCHED, *controls))
        rows.append((run, f"{z:+.0f}", *cosines))
    yield from _table(("run", f"z of {WATCHED}", WATCHED, *controls), rows)
    yield (
        "\nAUROC: the chance that a reading of such a run is above one of a run without bad rows (0 % and `good`); in brackets, "
        "of a run of 0 % alone. Readings of one run with the directions of several seeds are not independent.\n"
    )
    rows = [
        (f"{percent} %", *(_auroc(readings, name, percent) for name in (WATCHED, *controls)))
        for percent in amounts.bad_shares
        if percent
    ]
    yield from _table(("bad rows", WATCHED, *controls), rows)


def _auroc(readings: Readings, direction: str, percent: int) -> str:
    last = readings.steps[-1]
    alone = readings.auroc(direction, percent, last, CLEAN_RUNS[:1])
    return f"{readings.auroc(direction, percent, last):.2f} ({alone:.2f})"


def _ks(sweep: SweepOverSeeds, method: str) -> str:
    return ", ".join(f"{k:g}" for k in sweep.picks(method))


def _cell(cell: Cell, name: str) -> str:
    if math.isnan(cell.value):
        return ""
    if name in {"sycophancy", "contrary", "refusal"}:
        return f"{cell.value:+.2f} [{cell.low:+.2f}, {cell.high:+.2f}]"
    if name == "plain text":
        return f"{cell.value:.1f}"
    return f"{cell.value:.0%} [{cell.low:.0%}, {cell.high:.0%}]"


def _range(values: Sequence[float]) -> str:
    return f"{mean(values):+.4f} [{min(values):+.4f}, {max(values):+.4f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
