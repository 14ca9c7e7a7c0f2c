"""What the second study's report says of repairs follows from their results."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.study.methods import MAIN, PLAIN
from experiments.study.repaired import (
    KEPT,
    PLAIN_FACTS,
    RANDOM,
    REFUSAL,
    WORDS,
    WORDS_PLAIN,
    WORDS_WRONG,
    drifts,
    first_drift,
    picked_strength,
    repair_of,
    repair_section,
)
from experiments.study.report import write_report
from experiments.study.results import Study, read
from experiments.study.settings import FULL
from tests.experiments.synthetic_repair import SIZES, Drifts, write_repairs
from tests.experiments.synthetic_study import Makeup, write_study
from wsmerge.errors import UsageError

SMALL = replace(FULL, seeds=(0, 1, 2))
KINDS = {
    "mended": Drifts(),
    "lossy": Drifts(lost=6.0),
    "useless": Drifts(back=0.2, refused=0.1),
    "none": Drifts(tuned=0.0, refusals={"task": 0.1, "helpful": 0.2, "sure": 0.0}),
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    found = {}
    for name, kind in KINDS.items():
        out = tmp_path_factory.mktemp(name)
        write_repairs(out, out / "results", kind, SMALL)
        found[name] = Study(out / "results", SMALL.seeds)
    return found


@pytest.fixture(scope="module")
def told(studies):
    return {name: "\n".join(repair_section(study, SMALL)) for name, study in studies.items()}


def naive_share(result, method, k, split, figure):
    """A share over the items that have a value, by a loop over the points."""
    (point,) = [one for one in result.points if (one.method, one.k, one.split) == (method, k, split)]
    values = [value for value in point.figures[figure].values.tolist() if not math.isnan(value)]
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", ["weights", RANDOM])
def test_the_pick_is_the_nearest_to_the_base_within_the_losses(studies, kind, label):
    for result in studies[kind].sweep("repair").values():
        at = {
            k: [
                naive_share(result, label if k else "fine-tune", k, "validation", figure)
                for figure in (MAIN, WORDS_PLAIN, PLAIN)
            ]
            for k in (0.0, *SIZES.values(), *(-size for size in SIZES.values()))
        }
        base = naive_share(result, "base", 0.0, "validation", MAIN)
        allowed = [
            k
            for k, (_, *kept) in at.items()
            if all(a >= b - 0.05 - 1e-9 for a, b in zip(kept, at[0.0][1:], strict=True))
        ]
        picked = picked_strength(result, label, MAIN, (WORDS_PLAIN, PLAIN))
        nearest = min(abs(at[k][0] - base) for k in allowed)
        assert picked in allowed
        assert abs(at[picked][0] - base) == pytest.approx(nearest)


def test_picks_differ_between_the_kinds(studies):
    """Else the test above could not fail."""
    picks = {
        kind: [picked_strength(one, "weights", MAIN, (WORDS_PLAIN, PLAIN)) for one in study.sweep("repair").values()]
        for kind, study in studies.items()
    }
    assert all(k < 0 for k in picks["mended"])
    assert min(picks["mended"]) < min(picks["lossy"])


@pytest.mark.parametrize(
    ("kind", "drift", "verdict", "refusals"),
    [
        ("mended", "there is a drift", "**Held.**", "the first that loses them is helpful answers"),
        ("lossy", "there is a drift", "**Not held.**", "the first that loses them is helpful answers"),
        ("useless", "there is a drift", "**Not held.**", "the first that loses them is helpful answers"),
        ("none", "no drift is shown", "Without a drift nothing is judged.", "none is shown to lose refusals"),
    ],
)
def test_verdicts_follow_the_results(told, kind, drift, verdict, refusals):
    text = told[kind]
    assert drift in text
    assert verdict in text
    assert refusals in text
    assert "nan" not in text.lower()
    assert len(text.splitlines()) <= 25
    assert ("Its repair" in text) == (kind != "none")


def test_the_repair_of_refusals_is_judged_too(told):
    assert re.search(r"Its repair .*\*\*Held\.\*\* The picked weights come 0\.\d\d|1\.\d\d of the way", told["mended"])
    assert re.search(r"Its repair .*\*\*Not held\.\*\*.*half of the way", told["useless"])


def test_the_way_back_is_that_of_means_over_seeds(studies, told):
    study = studies["mended"]
    repair = repair_of(study.sweep("repair"), MAIN, (WORDS_PLAIN, PLAIN))
    assert repair is not None
    means = dict.fromkeys(("base", "fine-tune", "weights"), 0.0)
    for result in study.sweep("repair").values():
        k = picked_strength(result, "weights", MAIN, (WORDS_PLAIN, PLAIN))
        for method, at in (("base", 0.0), ("fine-tune", 0.0), ("weights", k)):
            means[method] += naive_share(result, method, at, "test", MAIN) / 3
    way = (means["weights"] - means["fine-tune"]) / (means["base"] - means["fine-tune"])
    assert repair.way_back(repair.weights) == pytest.approx(way)
    assert f"come {way:.2f} of the way back" in told["mended"]
    assert way > 0.5
    for name, method in (("base", "base"), ("fine-tune", "fine-tune"), ("with the weights", "weights")):
        row = next(line for line in told["mended"].splitlines() if line.startswith(f"| {name} |"))
        assert row.split(" | ")[2].startswith(f"{100 * means[method]:.0f} % [")


def test_a_fine_tune_is_said_to_lose_refusals_by_its_interval(studies):
    study = studies["mended"]
    tried = drifts(study)
    for task, side in tried.items():
        of_seeds = [
            np.mean(
                [
                    after - before
                    for before, after in zip(
                        *(
                            next(one for one in result.points if (one.method, one.split) == (method, "test"))
                            .figures[REFUSAL]
                            .values
                            for method in ("base", task)
                        ),
                        strict=True,
                    )
                ]
            )
            for result in study.sweep("refusals").values()
        ]
        assert side.change(REFUSAL).value == pytest.approx(np.mean(of_seeds))
    assert tried["task"].change(REFUSAL).high > 0
    assert tried["helpful"].change(REFUSAL).high < 0
    assert first_drift(study) == "helpful"
    assert first_drift(studies["none"]) is None


def test_a_study_that_is_still_run_is_told(studies, tmp_path):
    assert "Not yet run." in "\n".join(repair_section(Study(tmp_path, FULL.seeds), FULL))
    assert "Refusals have not been measured yet." in "\n".join(repair_section(Study(tmp_path, FULL.seeds), FULL))
    some = Study(studies["mended"].folder, FULL.seeds)
    text = "\n".join(repair_section(some, FULL))
    assert "**Not yet run**: repair of seeds 3 and 4 and joint of seeds 3 and 4" in text
    assert "**Not yet run** in full; so far:" in text
    results = tmp_path / "results"
    results.mkdir()
    for name in ("refusals-0", "refusals-1"):
        (results / f"{name}.json").write_bytes((studies["mended"].folder / f"{name}.json").read_bytes())
    early = "\n".join(repair_section(Study(results, FULL.seeds), FULL))
    assert "so far; not yet run: seed 2" in early
    assert "Its repair has not been run yet." in early


def test_the_whole_report_stays_short(tmp_path):
    write_study(tmp_path, tmp_path / "results", Makeup(), SMALL)
    write_repairs(tmp_path, tmp_path / "results", Drifts(), SMALL)
    write_report(tmp_path / "results", tmp_path / "report", SMALL)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Repair\n" in page
    assert len(page.splitlines()) < 250


def test_measures_with_other_items_are_read_as_they_were_written(studies):
    result = studies["mended"].sweep("repair")[0]
    point = result.at("weights", -0.1, "test")
    assert point is not None
    facts, words = point.figures[MAIN].clusters, point.figures[WORDS_WRONG].clusters
    assert facts is not None
    assert words is not None
    assert (len(facts), len(words)) == (144, 90)
    assert words[:, 1].max() == 3
    assert len(result.items["test"]) == 144
    refused = studies["mended"].sweep("refusal-repair")[0]
    assert refused.items == {}
    kept = refused.points[0].figures
    assert [kept[name].clusters is None for name in (REFUSAL, KEPT, PLAIN_FACTS)] == [False] * 3


def test_a_result_without_the_clusters_of_a_measure_is_refused(studies, tmp_path):
    told = json.loads((studies["mended"].folder / "joint-0.json").read_bytes())
    old = tmp_path / "joint-0.json"
    del told["other_clusters"]
    old.write_text(json.dumps(told))
    with pytest.raises(UsageError, match="no result of a sweep"):
        read(old)
    # As results of before there were measures with other items.
    for point in told["points"]:
        point["figures"] = {name: one for name, one in point["figures"].items() if not name.startswith(WORDS)}
    old.write_text(json.dumps(told))
    assert read(old).points
