"""`lint` on the command line: what is told, in which form, and with which exit code."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.engine.merging.made import entries, fine_tune, model


@pytest.fixture
def lab(tmp_path):
    base = model(tmp_path / "base")
    fine_tune(base, tmp_path / "one", seed=1)
    return tmp_path


def recipe(lab, **top):
    values = {
        "merge_method": "task_arithmetic",
        "base_model": str(lab / "base"),
        "models": entries((lab / "one", {"weight": 0.5})),
        **top,
    }
    path = lab / "recipe.yml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_sound_recipe_is_0(lab, wsmerge):
    done = wsmerge("lint", recipe(lab), "--strict")
    assert done.code == 0
    assert "nothing found" in done.out


def test_warnings_are_0_and_1_where_strict(lab, wsmerge):
    path = recipe(lab, dype="float32")
    done = wsmerge("lint", path)
    assert done.code == 0
    assert done.out.count("did you mean 'dtype'") == 1
    assert "warning: " in done.out
    assert f"{path}:7: dype" in done.out
    assert "next: rename it to dtype" in done.out
    assert wsmerge("lint", path, "--strict").code == 1


def test_errors_are_1(lab, wsmerge):
    done = wsmerge("lint", recipe(lab, merge_method="slerp"))
    assert done.code == 1
    assert "error: " in done.out


@pytest.mark.parametrize(("top", "code"), [({}, 0), ({"dype": 1}, 0), ({"merge_method": "tise"}, 1)], ids=str)
def test_json(lab, wsmerge, top, code):
    done = wsmerge("lint", recipe(lab, **top), "--json")
    assert done.code == code
    found = json.loads(done.out)["findings"]
    assert bool(found) == bool(top)
    for item in found:
        assert item.keys() == {"level", "code", "where", "message", "hint"}


def test_what_is_no_recipe_is_2(lab, wsmerge):
    (lab / "recipe.yml").write_text("merge_method: [\n")
    done = wsmerge("lint", lab / "recipe.yml")
    assert done.code == 2
    assert "recipe.yml" in done.err
    assert wsmerge("lint", lab / "nothing.yml").code == 2


def test_nothing_is_written(lab, wsmerge):
    path = recipe(lab)
    before = {item: item.stat().st_mtime_ns for item in lab.rglob("*")}
    wsmerge("lint", path)
    assert {item: item.stat().st_mtime_ns for item in lab.rglob("*")} == before


def test_merge_tells_the_same_and_refuses_where_strict(lab, wsmerge):
    path = recipe(lab, dype="float32")
    done = wsmerge("merge", path, lab / "strict", "--strict")
    assert done.code == 2
    assert "did you mean 'dtype'" in done.err
    assert "strict" in done.err
    assert not list(lab.glob("strict*"))
    done = wsmerge("merge", path, lab / "out")
    assert done.code == 0
    assert done.err.count("did you mean 'dtype'") == 1
    assert wsmerge("merge", recipe(lab), lab / "sound", "--strict").code == 0
    done = wsmerge("merge", recipe(lab, merge_method="tise"), lab / "wrong")
    assert done.code == 2
    assert "did you mean" in done.err
    assert not list(lab.glob("wrong*"))
