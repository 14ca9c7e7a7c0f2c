"""Recipes of one file that build on each other: order, what is made again and what is taken again, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
import yaml

import wsmerge
from tests.engine.merging.made import direction, entries, fine_tune, merge, model, values
from wsmerge.errors import RecipeError, UsageError, WsmergeError


@pytest.fixture
def models(tmp_path):
    base = model(tmp_path / "base")
    (base / "generation_config.json").write_text("{}")
    return base, fine_tune(base, tmp_path / "one", seed=1), fine_tune(base, tmp_path / "two", seed=2)


def blend_of(models, weights=(1.0, 3.0)):
    sources = entries(*((path, {"weight": weight}) for path, weight in zip(models[1:], weights, strict=True)))
    return {"name": "blend", "merge_method": "linear", "models": sources}


def final_of(models, source="blend", **more):
    recipe = {"merge_method": "task_arithmetic", "base_model": str(models[0])}
    return recipe | {"models": [{"model": source, "parameters": {"weight": 0.5}}]} | more


def text_of(*recipes):
    return yaml.safe_dump_all(recipes, sort_keys=False)


def run(out, text, **more):
    return wsmerge.merge(text, out, **more)


def snapshot(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_blended(out, models, weights=(1.0, 3.0)):
    base, one, two = map(values, models)
    for name, written in values(out).items():
        blend = (weights[0] * one[name] + weights[1] * two[name]) / sum(weights)
        exact = base[name] + 0.5 * (blend - base[name])
        np.testing.assert_allclose(written, exact, rtol=0, atol=2.0**-6 * np.abs(exact).max())


# --- order ---


@pytest.mark.parametrize("swapped", [False, True])
def test_a_recipe_comes_after_what_it_needs(models, tmp_path, swapped):
    documents = [blend_of(models), final_of(models)]
    run(tmp_path / "out", text_of(*(reversed(documents) if swapped else documents)))
    one_by_one = merge(tmp_path / "blend", {k: v for k, v in blend_of(models).items() if k != "name"})
    merge(tmp_path / "whole", final_of(models, str(one_by_one.out)))
    first, second = values(tmp_path / "out"), values(tmp_path / "whole")
    assert all((first[name] == second[name]).all() for name in first)
    assert_blended(tmp_path / "out", models)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two", "out", "blend", "whole"}


def test_where_all_have_names_the_last_is_the_result(models, tmp_path):
    run(tmp_path / "out", text_of(blend_of(models), final_of(models, name="end")))
    assert_blended(tmp_path / "out", models)


def test_three_in_a_row_and_a_relative_name(models, tmp_path):
    middle = final_of(models, "./blend", name="middle")
    last = {"merge_method": "passthrough", "models": [{"model": "middle"}]}
    run(tmp_path / "out", text_of(last, middle, blend_of(models)), intermediates=tmp_path / "kept")
    assert_blended(tmp_path / "out", models)
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "kept").iterdir()) == ["blend", "middle"]
    before = snapshot(tmp_path / "kept")
    run(tmp_path / "again", text_of(last, middle, blend_of(models)), intermediates=tmp_path / "kept")
    assert snapshot(tmp_path / "kept") == before


def test_a_steered_base_may_be_an_intermediate(models, tmp_path):
    w = direction(models[0], tmp_path / "kind")
    steered = {"name": "blend", "base_model": str(models[0]), "directions": [{"direction": str(w), "weight": 1.0}]}
    run(tmp_path / "out", text_of(steered, {"merge_method": "passthrough", "models": [{"model": "blend"}]}))
    merge(tmp_path / "whole", {key: value for key, value in steered.items() if key != "name"})
    first, second = values(tmp_path / "out"), values(tmp_path / "whole")
    assert all((first[name] == second[name]).all() for name in first)


# --- what is taken again ---


def test_an_intermediate_is_taken_again_where_nothing_changed(models, tmp_path):
    text = text_of(blend_of(models), final_of(models))
    run(tmp_path / "first", text, intermediates=tmp_path / "kept")
    before = snapshot(tmp_path / "kept")
    assert any(name.endswith("model.safetensors") for name in before)
    run(tmp_path / "second", text, intermediates=tmp_path / "kept")
    run(
        tmp_path / "third",
        text_of(blend_of(models), final_of(models, dtype="float32")),
        intermediates=tmp_path / "kept",
    )
    assert snapshot(tmp_path / "kept") == before


def rewritten(models):
    one = models[1]
    data = (one / "model.safetensors").read_bytes()
    time.sleep(0.01)
    (one / "model.safetensors").write_bytes(data)


def touched(models):
    os.utime(models[1] / "model.safetensors", ns=(1, 1))


def other_weights(models):
    shutil.copyfile(models[0] / "model.safetensors", models[1] / "model.safetensors")


def other_config(models):
    path = models[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 5.0}))


def other_files(models):
    (models[1] / "generation_config.json").write_text('{"temperature": 2.0}')


def other_licence(models):
    (models[1] / "LICENSE").write_text("not free any more")


@pytest.mark.parametrize("change", [rewritten, touched, other_weights, other_config, other_files, other_licence])
def test_and_made_anew_where_a_file_of_its_models_changed(models, tmp_path, change):
    text = text_of(blend_of(models), final_of(models))
    run(tmp_path / "first", text, intermediates=tmp_path / "kept")
    change(models)
    run(tmp_path / "second", text, intermediates=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert_blended(tmp_path / "second", models)
    newest = max((tmp_path / "kept").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for name in ("generation_config.json", "LICENSE"):
        if (models[1] / name).exists():
            assert (newest / name).read_bytes() == (models[1] / name).read_bytes()
    assert json.loads((newest / "config.json").read_text()) == json.loads((models[1] / "config.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"models": [0.5, 3.0]},
        {"dtype": "float32"},
        {"out_dtype": "float16"},
        {"parameters": {"normalize": False}},
        {"chat_template": "chatml"},
    ],
    ids=str,
)
def test_or_where_its_recipe_changed(models, tmp_path, change):
    if "chat_template" in change:
        from tests.engine.vocabulary.made import make_tokenizer, mergekit  # noqa: PLC0415 - heavy, for this case alone

        mergekit()
        for path in models:
            kept = (path / "config.json").read_text()
            make_tokenizer(path, ["the"], rows=40)
            (path / "config.json").write_text(kept)
    first = blend_of(models)
    run(tmp_path / "first", text_of(first, final_of(models)), intermediates=tmp_path / "kept")
    second = blend_of(models, change["models"]) if "models" in change else first | change
    run(tmp_path / "second", text_of(second, final_of(models)), intermediates=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize(
    "numerics", [wsmerge.Numerics(precise=True), wsmerge.Numerics(seed=3)], ids=["precise", "seed"]
)
def test_or_where_other_bits_are_asked_for(models, tmp_path, numerics):
    text = text_of(blend_of(models), final_of(models))
    run(tmp_path / "first", text, intermediates=tmp_path / "kept")
    run(tmp_path / "second", text, intermediates=tmp_path / "kept", settings=wsmerge.Settings(numerics=numerics))
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_half_of_an_intermediate_is_not_taken(models, tmp_path):
    text = text_of(blend_of(models), final_of(models))
    run(tmp_path / "first", text, intermediates=tmp_path / "kept")
    (place,) = (tmp_path / "kept").iterdir()
    whole = {path.name: path.read_bytes() for path in place.iterdir() if path.suffix == ".safetensors"}
    # As a killed run leaves it: under another name, without a report.
    partial = place.rename(place.with_name(f"{place.name}.partial"))
    (partial / "wsmerge.json").unlink()
    (partial / "journal.jsonl").write_text('{"plan": "another"}\n')
    (partial / "model.safetensors").write_bytes(b"\0" * 100)
    run(tmp_path / "second", text, intermediates=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [place.name]
    assert {name: (place / name).read_bytes() for name in whole} == whole


# --- what is left ---


def test_the_default_folder_is_removed_when_the_last_merge_fails(models, tmp_path):
    (models[0] / "config.json").write_text("{}")  # found when the last recipe is planned
    with pytest.raises(WsmergeError):
        run(tmp_path / "out", text_of(blend_of(models), final_of(models)))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two"}


def test_what_others_keep_under_that_name_stays(models, tmp_path):
    folder = tmp_path / "out.intermediates"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    run(tmp_path / "out", text_of(blend_of(models), final_of(models)))
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_the_texts_of_all_recipes_are_checked_before_the_first_is_merged(models, tmp_path):
    wrong = final_of(models, merge_method="task_arithmetics")
    with pytest.raises(RecipeError, match="task_arithmetics"):
        run(tmp_path / "out", text_of(blend_of(models), wrong), intermediates=tmp_path / "kept")
    strict = wsmerge.Settings(strict=True)
    text = text_of(blend_of(models), final_of(models, dype=1))
    with pytest.raises(RecipeError, match="dype"):
        run(tmp_path / "out", text, intermediates=tmp_path / "kept", settings=strict)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two"}


def test_an_output_that_cannot_be_made_is_told_before_the_first_merge(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(WsmergeError, match="did not write it"):
        run(tmp_path / "out", text_of(blend_of(models), final_of(models)), intermediates=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    text = text_of(blend_of(models), final_of(models))
    with pytest.raises(UsageError, match="would lie in the output"):
        run(tmp_path / "new", text, intermediates=tmp_path / "new/kept")
    assert not (tmp_path / "new").exists()


def test_warnings_of_every_recipe_are_told(models, tmp_path):
    report = run(tmp_path / "out", text_of(blend_of(models) | {"dype": 1}, final_of(models, detype=1)))
    assert [line.count("dype") + line.count("detype") for line in report.warnings] == [1, 1]


@pytest.mark.parametrize("name", ["../blend", "a/b", "/blend", "blend *"])
def test_a_name_is_no_path(models, tmp_path, name):
    blend = blend_of(models) | {"name": name}
    before = {path.name for path in tmp_path.parent.iterdir()}
    run(tmp_path / "out", text_of(blend, final_of(models, name.removeprefix("./"))))
    assert_blended(tmp_path / "out", models)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two", "out"}
    assert {path.name for path in tmp_path.parent.iterdir()} == before


def test_recipes_in_a_circle_and_twice_the_same_name_are_refused(models, tmp_path):
    for text in (
        text_of(
            blend_of(models) | {"models": [{"model": "end", "parameters": {"weight": 1}}]}, final_of(models, name="end")
        ),
        text_of(blend_of(models), blend_of(models)),
    ):
        with pytest.raises(RecipeError):
            run(tmp_path / "out", text)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two"}


# --- plans ---


def test_several_recipes_are_planned_as_they_are_merged(models, tmp_path):
    middle = final_of(models, "./blend", name="middle")
    text = text_of({"merge_method": "passthrough", "models": [{"model": "middle"}]}, middle, blend_of(models))
    with wsmerge.plan(text) as planned:
        assert [one.recipe.name for one in planned.needs] == ["blend", "middle"]
        wanted = [(tensor.spec, tensor.step.method) for tensor in planned.merge.tensors]
        bytes_read = planned.merge.read_bytes
    merged = merge(tmp_path / "blend", {k: v for k, v in blend_of(models).items() if k != "name"})
    merge(tmp_path / "middle", final_of(models, str(merged.out)))
    with wsmerge.plan({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "middle")}]}) as alone:
        assert [(tensor.spec, tensor.step.method) for tensor in alone.merge.tensors] == wanted
        assert alone.merge.read_bytes == bytes_read
        assert alone.merge.shards == planned.merge.shards


def test_what_is_wrong_with_a_later_recipe_is_told_by_its_plan(models):
    layers = {"model": "blend", "layer_range": [0, 9]}
    stack = {"merge_method": "passthrough", "slices": [{"sources": [layers]}]}
    with pytest.raises(WsmergeError, match="has 3 layers"):
        wsmerge.plan(text_of(blend_of(models), stack))


def test_a_plan_of_several_recipes_is_not_carried_out_without_the_first(models, tmp_path):
    with wsmerge.plan(text_of(blend_of(models), final_of(models))) as planned:
        with pytest.raises(UsageError, match="never carried out"):
            wsmerge.merge(planned, tmp_path / "out")
        stand_ins = planned.merge.models
        assert any("blend" in str(one.path) for one in stand_ins)
    assert not any(one.path.exists() for one in stand_ins if "blend" in one.path.name)
    assert not (tmp_path / "out").exists()
