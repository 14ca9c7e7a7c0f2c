"""The study's report says at its head what its script writes there."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.smollm2.study import report
from experiments.smollm2.study.report import AGREEMENT, NO_CONTROLS
from experiments.smollm2.study.results import SweepOverSeeds
from experiments.smollm2.study.settings import FULL

HERE = Path(report.__file__).parent


def test_the_committed_report_begins_as_the_script_begins():
    lines = (HERE / "report" / "report.md").read_text(encoding="utf-8").split("\n\n")
    assert lines[1] == (AGREEMENT + NO_CONTROLS).rstrip()


def sweeps(folder: Path, *, true_claims: float, difference: float | None) -> dict[str, SweepOverSeeds]:
    """One sweep that is the same for every seed."""
    figures = {
        name: {"value": 0.5 + change, "low": 0.0, "high": 1.0, "change": {"value": change, "low": -1.0, "high": 1.0}}
        for name, change in (("agrees with true claims", true_claims), ("sycophancy rate", -0.4))
    }
    fields: dict[str, Any] = {
        "reference": "base",
        "target": "sycophancy rate",
        "picks": [{"method": "weights", "strength": -1.0}],
        "points": [{"method": "weights", "k": -1.0, "split": "test", "figures": figures}],
        "layers": {},
    }
    if difference is not None:
        gap = {"value": difference + 1, "low": difference, "high": difference + 2}
        others = ("weights, random 1", "prompt")
        fields["comparisons"] = [{"method": "weights", "other": other, "difference": gap} for other in others]
    for seed in FULL.seeds:
        path = folder / "sweeps" / f"sycophancy-{seed}" / "sweep.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields))
    return {"sycophancy": SweepOverSeeds(folder, "sycophancy", FULL)}


@pytest.mark.parametrize(("true_claims", "told"), [(-0.35, True), (0.1, False)])
def test_agreement_is_told_where_both_move_alike(tmp_path, true_claims, told):
    head = report._head(tmp_path, FULL, sweeps(tmp_path, true_claims=true_claims, difference=None))
    assert (AGREEMENT in head) == told
    assert NO_CONTROLS in head


def test_controls_are_told_where_a_run_has_them(tmp_path):
    head = report._head(tmp_path, FULL, sweeps(tmp_path, true_claims=-0.4, difference=0.2))
    assert NO_CONTROLS not in head
    count = len(FULL.seeds)
    assert f"Beside weights stand {count} random directions" in head
    assert f"larger than that of {count}, by intervals" in head
