"""The second study's report says what its results say, and is what they give."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.study import report
from experiments.study.doubts import SEEN
from experiments.study.findings import gate_of, hypotheses
from experiments.study.methods import MAIN, PLAIN, WEIGHTS, Methods
from experiments.study.report import write_report
from experiments.study.results import RESULTS, Study
from experiments.study.settings import FULL, PRIMARY_COST, QUICK
from tests.experiments.synthetic_study import ONE_LAYER, Makeup, write_study

COMMITTED = Path(report.__file__).parent / "report" / "report.md"
SMALL = replace(FULL, seeds=(0, 1))
ONE_SEED = replace(FULL, seeds=(0,))
WORKS = Makeup()
NOTHING = Makeup(gains={}, spoken=-0.3)
"""Weights do no more than other directions do, and harm what is said."""
STUDIES = {"works": (WORKS, FULL), "nothing": (NOTHING, SMALL)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Results of a study in which weights work, and of one in which they do not."""
    found = {}
    for name, (makeup, amounts) in STUDIES.items():
        out = tmp_path_factory.mktemp(name)
        write_study(out, out / "results", makeup, amounts)
        found[name] = out / "results"
    return found


@pytest.fixture(scope="module")
def told(studies):
    """The reports of both."""
    pages = {}
    for name, results in studies.items():
        folder = results.parent / "report"
        write_report(results, folder, STUDIES[name][1])
        pages[name] = (folder / "report.md").read_text(encoding="utf-8")
    return pages


def methods_of(results: Path, amounts=FULL) -> Methods:
    return Methods(Study(results, amounts.seeds), amounts.costs)


def verdicts(page: str) -> list[str]:
    return re.findall(r"^\d\. .*?\*\*(Held|Not held|Not yet run)", page, re.MULTILINE)


def table_row(page: str, name: str, section: str) -> list[str]:
    """The cells of a table's row within a section."""
    part = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return next(line for line in part.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")


def test_the_committed_report_is_what_the_committed_results_give(tmp_path):
    if not list(RESULTS.glob("*-*.json")):
        pytest.skip("no results of the study are committed yet")
    write_report(RESULTS, tmp_path, FULL)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == COMMITTED.read_text(encoding="utf-8")


def test_a_report_is_short_and_has_its_figures(studies, told):
    for name, page in told.items():
        assert len(page.splitlines()) < 250
        assert "nan" not in page.lower().replace("financ", "")
        for image in re.findall(r"!\[.*?\]\((.*?)\)", page):
            assert (studies[name].parent / "report" / image).stat().st_size > 10_000
    assert told["works"].count("![") == 2


def test_hypotheses_follow_the_results(told):
    assert verdicts(told["works"]) == ["Held"] * 5
    # Weights that do nothing cost nothing.
    assert verdicts(told["nothing"]) == ["Not held", "Held", "Not held", "Not held", "Not held"]
    assert "5 held." in told["works"]
    assert "1 held and 4 not held." in told["nothing"]


def test_lost_answers_are_a_cost(tmp_path):
    write_study(tmp_path, tmp_path / "results", Makeup(losses={WEIGHTS: 0.8}), SMALL, sweeps=("facts",))
    free = hypotheses(methods_of(tmp_path / "results", SMALL))[1]
    assert free.verdict == "not held"
    assert "What fails: plain questions -" in free.told


def test_the_main_figure_is_that_of_the_journals(studies, told):
    """By loops over the sweeps' own files."""
    of_seeds = []
    for seed in FULL.seeds:
        folder = studies["works"].parent / "sweeps" / f"facts-{seed}"
        rows = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()[1:]]
        finished = [row for row in rows if "measure" not in row and row["only"] is None and row["split"] == "test"]
        points = json.loads((folder / "sweep.json").read_bytes())["points"]
        k = next(
            one["k"]
            for one in points
            if one["method"] == WEIGHTS and one.get("kl_aimed_at") == [PRIMARY_COST] and one["k"] < 0
        )
        base = next(row for row in finished if row["method"] == "base")["figures"]["facts plain"]["values"]
        ours = next(row for row in finished if (row["method"], row["strength"]) == (WEIGHTS, k))["figures"]
        kept = [hint for hint, plain in zip(ours["facts wrong hint"]["values"], base, strict=True) if plain == 1]
        of_seeds.append(sum(kept) / len(kept))
    cells = table_row(told["works"], "contrastive weights", f"At a KL of {PRIMARY_COST:g}")
    assert cells[3].startswith(f"{100 * sum(of_seeds) / 5:.0f} % [")
    measured = methods_of(studies["works"]).at(WEIGHTS)
    assert measured is not None
    assert measured.value(MAIN).value == pytest.approx(sum(of_seeds) / 5)


def test_controls_have_the_better_sign_of_each_seed(studies):
    methods = methods_of(studies["works"])
    label = "weights, random isotropic 1"
    best = methods.in_favour(label)
    sides = [methods.at(label, PRIMARY_COST, sign) for sign in (-1, 1)]
    assert best is not None
    for place in range(5):
        rises = [side.changes(MAIN)[place] for side in sides if side is not None]
        assert len(rises) == 2
        assert best.changes(MAIN)[place] == max(rises)
    assert len({k > 0 for k in best.ks}) == 2  # of one sign alone nothing was chosen
    plus_pole = methods.in_favour("plus pole")
    assert plus_pole is not None
    assert all(k < 0 for k in plus_pole.ks)


def test_differences_are_paired_over_the_same_seeds(studies):
    compared = {one.theirs.label: one for one in methods_of(studies["works"]).compared()}
    assert compared["formality"].ours.seeds == FULL.seeds
    assert compared["formality"].theirs.seeds == (0,)
    assert compared["biases"].theirs.seeds == FULL.seeds
    assert WEIGHTS not in compared
    assert len(compared) == 12
    largest = max(compared.values(), key=lambda one: one.difference.p)
    assert largest.adjusted >= largest.difference.p
    smallest = min(compared.values(), key=lambda one: one.difference.p)
    assert smallest.adjusted == pytest.approx(12 * smallest.difference.p)


@pytest.mark.parametrize(("cost", "level"), [(0.03, 0.01), (0.06, 0.04), (0.5, 0.16), (0.005, None)])
def test_a_system_prompt_stands_against_the_weights_nearest_below(tmp_path, cost, level):
    write_study(tmp_path, tmp_path / "results", Makeup(prompt_cost=cost), ONE_SEED, sweeps=("facts",))
    methods = methods_of(tmp_path / "results", ONE_SEED)
    found = [one for one in methods.compared() if one.theirs.label in methods.prompts]
    if level is None:
        assert found == []
        return
    assert len(found) == 3
    assert all(one.ours.kl() == pytest.approx(level, rel=0.05) for one in found)
    assert all(one.theirs.ks == (-1.0,) for one in found)


def test_a_method_that_does_not_reach_a_cost_is_told(studies, told):
    side = methods_of(studies["works"]).at("first token")
    assert side is not None
    assert not side.reaches(PRIMARY_COST)
    assert table_row(told["works"], "first token", f"At a KL of {PRIMARY_COST:g}")[2].startswith("< 0.020")
    assert "first token does not reach every cost in every seed" in told["works"]
    reached = methods_of(studies["works"]).at(ONE_LAYER)
    assert reached is not None
    assert reached.reaches(PRIMARY_COST)
    assert reached.layers == (14,) * 5


def test_domains_that_nobody_had_looked_at_are_told_apart(studies, told):
    measured = methods_of(studies["works"]).at(WEIGHTS)
    assert measured is not None
    items = measured.points[0]["test"].figures[MAIN].values
    study = Study(studies["works"], FULL.seeds)
    fresh = [item.domain not in SEEN for item in study.sweep("facts")[0].items["test"]]
    counted = int((np.array(fresh) & ~np.isnan(items)).sum())
    assert (
        table_row(told["works"], "**domains not tried before**", "By wording and by domain")[1]
        == f"{counted} of {sum(fresh)}"
    )
    assert 0 < sum(fresh) < len(fresh)


def test_a_sceptic_adapts(told, tmp_path):
    assert "contradiction is not shown" in told["works"] or "contradiction cannot bring about" in told["works"]
    assert "nothing to explain" in told["nothing"]
    makeup = Makeup(losses={WEIGHTS: 2.5})
    write_study(tmp_path, tmp_path / "results", makeup, SMALL, sweeps=("facts",))
    write_report(tmp_path / "results", tmp_path / "report", SMALL)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Part of the effect is contradiction." in page
    assert "No control has been run yet." not in page  # formality is one, in the same sweep
    assert "Spoken answers have not been measured yet." in page


def test_a_study_in_progress_is_told(tmp_path):
    write_study(tmp_path, tmp_path / "results", WORKS, QUICK, sweeps=("facts", "biases"))
    write_report(tmp_path / "results", tmp_path / "report", QUICK)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Not all of the study has been run" in page
    assert "its figures mean nothing" in page
    assert verdicts(page)[2:] == ["Not yet run"] * 3

    (tmp_path / "results" / "facts-1.json").unlink()
    assert [one.verdict for one in hypotheses(methods_of(tmp_path / "results", QUICK))] == ["not yet run"] * 5
    write_report(tmp_path / "results", tmp_path / "report", QUICK)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "**Not yet run** in full (there: seed 0); so far: It goes from" in page


def test_before_the_first_result_there_is_nothing_to_tell(tmp_path):
    write_report(tmp_path / "results", tmp_path / "report", FULL)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Nothing has been measured yet." in page
    assert "## Hypotheses" not in page


def test_the_study_ends_at_its_gate(tmp_path):
    write_study(tmp_path, tmp_path / "results", Makeup(knows=-0.5), SMALL, sweeps=("facts",))
    gate = gate_of(methods_of(tmp_path / "results", SMALL))
    assert gate is not None
    assert not gate.is_passed
    write_report(tmp_path / "results", tmp_path / "report", FULL)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "not passed, and the study ends here" in page
    assert "## Hypotheses" not in page
    write_report(tmp_path / "results", tmp_path / "report", SMALL)  # not the plan's amounts: shows that every part runs
    assert "## Hypotheses" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_a_base_that_keeps_its_answers_does_not_pass_the_gate(tmp_path):
    write_study(tmp_path, tmp_path / "results", Makeup(knows=4.0), SMALL, sweeps=("facts",))
    gate = gate_of(methods_of(tmp_path / "results", SMALL))
    assert gate is not None
    assert gate.plain >= 0.7 * gate.items
    assert not gate.is_passed


def test_hours_are_those_of_all_processes(tmp_path):
    folder = tmp_path / "results" / "times"
    folder.mkdir(parents=True)
    for name, seconds in (("sweeps-1", 3600), ("sweeps-2", 1800), ("directions-1", 900), ("report-1", 99999)):
        (folder / f"{name}.json").write_text(json.dumps({"clock_s": 1, "processor_s": seconds}))
    write_report(tmp_path / "results", tmp_path / "report", FULL)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "1.75 hours of processor time on two cores" in page
    assert "directions 0.25 and sweeps 1.50" in page


def test_a_base_of_its_own_is_told(tmp_path):
    write_study(tmp_path, tmp_path / "results", WORKS, QUICK, sweeps=("facts", "biases"))
    file = tmp_path / "results" / "biases-1.json"
    lines = file.read_text().splitlines()
    place = next(
        number for number, line in enumerate(lines) if '"method": "base"' in line and '"split": "test"' in line
    )
    point = json.loads(lines[place].rstrip(","))
    values = point["figures"][PLAIN]["values"]
    point["figures"][PLAIN]["values"] = ("1" if values[0] == "0" else "0") + values[1:]
    lines[place] = json.dumps(point) + ","
    file.write_text("\n".join(lines))
    write_report(tmp_path / "results", tmp_path / "report", QUICK)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "The base of biases-1 answers 1 question otherwise" in page
    assert "The base of biases-0" not in page
