"""Every step of the demo on a tiny model."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import wsmerge
from tests.builders import make_adapter
from tests.demo.hinted import WORDINGS, naive_prompts, naive_right, write_facts
from tests.steering.tiny import save_tiny_base
from wsmerge.cli.app import app
from wsmerge.demo import run as demo_run
from wsmerge.demo.report import write_report
from wsmerge.demo.run import DemoResult, DemoSettings, run_demo
from wsmerge.demo.tables import findings, result_tables

SHAPES = {
    f"model.layers.{layer}.{module}.weight": shape
    for layer in range(2)
    for module, shape in {
        "self_attn.q_proj": (32, 32),
        "self_attn.v_proj": (16, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
    }.items()
}
CLAIMS = ("true", "false")


def write_pairs(path: Path, *, claims: bool) -> None:
    rows = [
        {
            "id": str(number),
            "domain": "d",
            "template": "t",
            "prompt": f"Is it {number}?",
            "plus": "Yes.",
            "minus": "No, it is not.",
            **({"claim": CLAIMS[number % 2]} if claims else {}),
        }
        for number in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> DemoSettings:
    folder = tmp_path_factory.mktemp("demo")
    base = save_tiny_base(folder / "base")
    for seed, name in enumerate(("sycophancy", "formality")):
        poles = [make_adapter(folder / f"{name}-{pole}", SHAPES, seed=10 * seed + pole, scale=0.1) for pole in (0, 1)]
        artifact = folder / "directions" / name
        wsmerge.extract(name, base=base, positive=poles[0], negative=poles[1], to=artifact).close()
        for split in ("validation", "test"):
            write_pairs(artifact / f"{split}.jsonl", claims=name == "sycophancy")
    evaluation = folder / "directions/evaluation"
    (evaluation / "facts").mkdir(parents=True)
    (evaluation / "plain_text.txt").write_text("One passage\nof text.\n\nAnother one.\n\nA third.\n")
    (evaluation / "wordings.yaml").write_text(yaml.safe_dump(WORDINGS))
    for split, count in (("validation", 2), ("test", 12)):
        write_facts(evaluation / "facts" / f"{split}.jsonl", count)
    return DemoSettings(
        folder / "out", folder / "directions", folder, full=True, merged_ks=(-1.0, 1.0), early_layers="0"
    )


@pytest.fixture(scope="module")
def result(settings) -> DemoResult:
    patch = pytest.MonkeyPatch()
    patch.setattr(demo_run, "embedded_model", lambda cache, **_: cache / "base")
    with patch.context():
        said: list[str] = []
        done = run_demo(settings, said.append)
        again = run_demo(settings, said.append)  # a second run finds store and checkpoint there
    patch.undo()
    assert [point.test.perplexity for point in done.merged] == [point.test.perplexity for point in again.merged]
    assert any("publishing 2 bundled directions" in line for line in said)
    return done


def test_the_merged_checkpoint_is_the_picked_one_and_loads(settings, result):
    told = json.loads((result.checkpoint / "wsmerge.json").read_text())
    assert [entry["direction"] for entry in told["recipe"]["directions"]] == ["sycophancy@1.0.0", "formality@1.0.0"]
    assert result.picked_k == 1.0
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint, dtype=torch.float32)
    assert model.config.num_hidden_layers == 2
    assert len(list((settings.out / "recipes").glob("*.yml"))) == 2


def test_measured_checkpoints_are_what_steering_in_memory_gives(settings, result):
    """The bf16 checkpoint at k is measured to be close to the base steered in float32 with the recipe's coefficients."""
    recipe = yaml.safe_load((settings.out / "recipes/mix_k+1.yml").read_text())
    weights = {entry["direction"]: entry["weight"] for entry in recipe["directions"]}
    model = AutoModelForCausalLM.from_pretrained(settings.cache / "base", dtype=torch.float32)
    instrument = demo_run._instrument(settings, AutoTokenizer.from_pretrained(settings.cache / "base"))
    with wsmerge.steer(model, weights, store=wsmerge.Store(settings.out / "store")):
        steered = instrument.measure(model, "test")
    merged = result.merged[-1].test
    for name, scores in merged.scores.items():
        assert scores.margins == pytest.approx(steered.scores[name].margins, abs=0.2)
    assert merged.perplexity == pytest.approx(steered.perplexity, rel=0.05)
    assert merged.scores["sycophancy"].margins != pytest.approx(result.base.test.scores["sycophancy"].margins, abs=0.2)


def test_the_report_shows_every_table_and_answer(settings, result):
    report = write_report(result)
    text = report.read_text()
    for table in result_tables(result):
        assert table.title in text
        assert all(len(row) == len(table.columns) for row in table.rows)
    for line in findings(result):
        assert line in text
    assert len(result.answers) == 6
    assert all(set(item.by_model) == {"base", "k = -1", "k = +1"} for item in result.answers)
    assert (settings.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((settings.out / "report.json").read_text())["picked_k"] == 1.0
    assert not re.search(re.escape(str(settings.cache)), text)  # a report may be shared


def test_right_answers_under_hints_by_hand(settings, result):
    model = AutoModelForCausalLM.from_pretrained(settings.cache / "base", dtype=torch.float64)
    tables = {}
    for k in (0.0, -1.0):
        with wsmerge.steer(model, {"sycophancy": k}, store=wsmerge.Store(settings.out / "store")):
            tables[k] = naive_right(model)
    known = tables[0.0][0]
    assert 1 < known.sum() < len(known) - 1  # else the test cannot fail
    assert (tables[0.0] != tables[-1.0]).any()
    told = {(row[0], row[1]): [cell.split()[0] for cell in row[2:]] for row in result_tables(result)[-1].rows}
    for k, label in ((0.0, "0 (base)"), (-1.0, "-1")):
        assert told[f"known ({known.sum()})", label] == [f"{share:.0%}" for share in tables[k][:, known].mean(axis=1)]
        assert told["all (12)", label] == [f"{share:.0%}" for share in tables[k].mean(axis=1)]
    assert [point.k for point in result.hints.points] == [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    # Three facts have a domain in common.
    first = [next((n for n in range(start, start + 3) if known[n]), None) for start in range(0, 12, 3)]
    shown = [naive_prompts(n)[1] for n in first if n is not None][:3]
    assert [fact.prompt for fact in result.hints.answers] == shown
    assert all(set(fact.by_model) == {"k = 0", "k = -1"} for fact in result.hints.answers)


def test_hints_are_the_last_that_report_and_terminal_show(settings, result, monkeypatch, capsys):
    table = result_tables(result)[-1]
    last = write_report(result).read_text().split("## After a wrong hint")[1]
    for fact in result.hints.answers:
        assert fact.prompt in last
    assert last.split("## ")[1].startswith(table.title)
    assert last.rstrip().splitlines()[-1] == f"| {' | '.join(table.rows[-1])} |"

    monkeypatch.setattr(demo_run, "run_demo", lambda *_: result)
    monkeypatch.setenv("COLUMNS", "80")
    app(["demo", "--out", str(settings.out), "--device", "cpu"], standalone_mode=False)
    lines = capsys.readouterr().out.rstrip().splitlines()
    told = [re.split(r" {2,}", line.strip()) for line in lines[-len(table.rows) :]]
    assert told == [list(row) for row in table.rows]  # with their intervals, each in one line
    assert table.title in lines[-len(table.rows) - 2]


def test_figures_under_hints_are_there_for_programs(settings, result):
    write_report(result)
    told = json.loads((settings.out / "report.json").read_text())["hints"]
    assert (told["facts"], told["known"]) == (12, result.hints.known)
    assert len(told["answers"]) == 3
    point = next(one for one in told["points"] if one["k"] == -1.0)
    after, before = (result.hints.at(k).right("wrong hint", known=True) for k in (-1.0, 0.0))
    share, change = after.interval, after.change_from(before)
    assert point["known"]["wrong hint"]["share"] == [share.value, share.low, share.high]
    assert point["known"]["wrong hint"]["change"] == [change.value, change.low, change.high]
    assert set(point["all"]) == {"plain", "wrong hint", "right hint"}


def test_thirds_and_composition_are_told(result):
    assert [point.label for point in result.thirds] == ["layers 0-0", "layers 1-1", "all layers"]
    assert [point.label for point in result.composition] == ["sycophancy alone", "formality alone", "both"]
