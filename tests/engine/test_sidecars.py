"""What lies beside the weights: configuration, tokenizer, licences, report; and that no path of this machine is in it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import wsmerge
from tests.builders import llama_shapes, make_adapter
from tests.engine.merging.made import deltas_of, dense_direction, direction, entries, fine_tune, merge, model, values
from tests.engine.vocabulary.made import TEMPLATE, make_tokenizer, mergekit
from wsmerge.engine.locate import module_folders
from wsmerge.engine.sidecars import carried_files
from wsmerge.errors import CheckpointError

GENERATION = {"temperature": 0.5, "eos_token_id": 1}
OTHERS = {
    "LICENSE": "free",
    "LICENCE.md": "free too",
    "NOTICE.txt": "who made it",
    "modeling_odd.py": "x = 1",
    "preprocessor_config.json": "{}",
}
LEFT = {
    "training_args.bin": "no",
    "optimizer.pt": "no",
    "trainer_state.json": "{}",
    "README.md": "the base's own",
    ".gitattributes": "no",
    "adapter_config.json": "{}",
    "pytorch_model.bin.index.json": "{}",
    "checkpoint-1/config.json": "{}",
}


@pytest.fixture
def models(tmp_path):
    """A base with all kinds of files and a tokenizer, and a fine-tune with others."""
    mergekit()  # imported without the warnings of its own imports
    words = ["the", "other", "cat"]
    base = model(tmp_path / "base")
    rows = {"vocab_size": 40}
    kept = (base / "config.json").read_text()
    make_tokenizer(base, words, rows=40, template=TEMPLATE, config=rows)
    (base / "config.json").write_text(kept)
    one = fine_tune(base, tmp_path / "one", seed=1)
    kept = (one / "config.json").read_text()
    make_tokenizer(one, words, rows=40, added=["<|new|>"])
    (one / "config.json").write_text(kept)
    (base / "generation_config.json").write_text(json.dumps(GENERATION))
    for name, text in (OTHERS | LEFT).items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    return base, one


def recipe_of(models, **top):
    base, one = models
    sources = entries((one, {"weight": 0.5}))
    return {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources, **top}


def test_what_the_donor_has_comes_along(models, tmp_path):
    merge(tmp_path / "out", recipe_of(models))
    base = models[0]
    for name in (*OTHERS, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes() or name == "config.json", name
    for name in LEFT:
        assert not (tmp_path / "out" / name).exists() or name == "README.md", name
    assert "the base's own" not in (tmp_path / "out/README.md").read_text()
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((base / "config.json").read_text())


@pytest.mark.parametrize(
    "top",
    [
        {"tokenizer_source": "union"},
        {"tokenizer_source": "base"},
        {"tokenizer": {"source": "union", "pad_to_multiple_of": 16}},
        {"chat_template": "chatml"},
        {"tokenizer_source": "base", "chat_template": "{{ messages[0]['content'] }} and more"},
    ],
    ids=str,
)
def test_generation_config_and_licences_are_kept_with_another_tokenizer(models, tmp_path, top):
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, for these tests alone

    merge(tmp_path / "out", recipe_of(models, **top))
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == GENERATION
    for name, text in OTHERS.items():
        assert (tmp_path / "out" / name).read_text() == text
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert ("<|new|>" in tokenizer.get_vocab()) == (
        top.get("tokenizer_source", top.get("tokenizer")) not in ("base", None)
    )
    chat = [{"role": "user", "content": "Hi"}]
    told = tokenizer.apply_chat_template(chat, tokenize=False)
    wanted = {None: "Hi", "chatml": "<|im_start|>user\nHi"}.get(top.get("chat_template"), "Hi and more")
    assert str(told).startswith(wanted)


MODULES = {
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    "2_Dense/config.json": "{}",
    "2_Dense/model.safetensors": "weights of the dense layer",
    "2_Dense/deeper/notes.rst": "whatever",
}


def with_modules(base, *paths):
    for name, text in MODULES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    named = [{"idx": number, "path": path, "type": "x"} for number, path in enumerate(("", *paths))]
    (base / "modules.json").write_text(json.dumps(named))


def test_folders_that_modules_json_names_come_along_whole(models, tmp_path):
    with_modules(models[0], "1_Pooling", "2_Dense/")
    report = merge(tmp_path / "out", recipe_of(models))
    for name, text in MODULES.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert not (tmp_path / "out" / "checkpoint-1").exists()
    assert any("2_Dense/model.safetensors" in line and "not merged" in line for line in report.warnings)


def test_folders_that_modules_json_does_not_name_do_not(models, tmp_path):
    with_modules(models[0], "1_Pooling")
    assert not merge(tmp_path / "out", recipe_of(models)).warnings
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
    assert not (tmp_path / "out" / "2_Dense").exists()


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b", 5, "a//b"])
def test_modules_of_other_folders_are_refused(models, tmp_path, path):
    with_modules(models[0], path)
    with pytest.raises(CheckpointError, match="no folder of the model"):
        merge(tmp_path / "out", recipe_of(models))


@pytest.mark.parametrize("text", ["[1]", "5", '[{"idx": 0}]', "no JSON"])
def test_what_is_no_list_of_modules_is_refused(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match="no list of modules"):
        module_folders(tmp_path)


def test_a_link_out_of_a_modules_folder_is_refused(models, tmp_path):
    with_modules(models[0], "1_Pooling")
    (tmp_path / "secret").write_text("secret")
    (models[0] / "1_Pooling" / "more.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="no file of a model"):
        merge(tmp_path / "out", recipe_of(models))


@pytest.mark.parametrize(
    ("brings", "told"),
    [
        ({"words": ["the", "other", "cat"]}, None),
        ({"words": ["the", "other", "cat"], "added": ["<|im_start|>"]}, "1 token ('<|im_start|>')"),
        ({"words": ["the", "other", "cat"], "template": TEMPLATE + "!"}, "a chat template"),
        ({"words": ["zebra"], "template": TEMPLATE}, "tokens ("),
    ],
)
def test_an_adapters_own_tokenizer_is_told_where_it_has_more(models, tmp_path, brings, told):
    base, _ = models
    adapter = make_adapter(tmp_path / "adapter", {"model.layers.0.mlp.up_proj.weight": (24, 16)})
    make_tokenizer(adapter, **brings)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    report = merge(tmp_path / "out", recipe)
    found = [line for line in report.warnings if "tokenizer of its own" in line]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]
    assert str(tmp_path) not in "".join(found)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def speaking(folder, words, *, seed):
    """A model with as many rows as its tokenizer has tokens."""
    rows = json.loads((make_tokenizer(folder, words) / "config.json").read_text())["vocab_size"]
    return model(folder, seed=seed, shapes=llama_shapes(vocab=rows))


def test_a_direction_over_rows_that_a_tokenizer_moves_is_refused(tmp_path):
    """The vocabulary is as large as before, in another order."""
    mergekit()
    base = speaking(tmp_path / "base", ["the", "cat"], seed=0)
    one = speaking(tmp_path / "one", ["cat", "the"], seed=1)
    w = dense_direction(base, tmp_path / "kind")
    recipe = recipe_of((base, one), directions=[{"direction": str(w), "weight": 1.0}])
    with pytest.raises(wsmerge.WsmergeError, match="change the rows") as caught:
        merge(tmp_path / "out", recipe | {"tokenizer_source": str(one)})
    assert caught.value.details == ("model.embed_tokens.weight",)
    merge(tmp_path / "out", recipe | {"tokenizer_source": "base"})
    steps = {"directions": [], "tokenizer_source": "base", "out_dtype": "float32"}
    merge(tmp_path / "without", {key: item for key, item in (recipe | steps).items() if item})
    merge(tmp_path / "with", recipe | {"tokenizer_source": "base", "out_dtype": "float32"})
    for name, delta in deltas_of(w).items():
        change = values(tmp_path / "with")[name] - values(tmp_path / "without")[name]
        np.testing.assert_allclose(change, delta, rtol=0, atol=1e-7)


def test_the_report_tells_what_was_read_and_written(models, tmp_path):
    base, one = models
    w = direction(base, tmp_path / "kind")
    recipe = recipe_of(models, directions=[{"direction": str(w), "weight": 0.5}], out_dtype="float32")
    numerics = wsmerge.Numerics(precise=True, seed=7)
    report = merge(tmp_path / "out", recipe, numerics=numerics)
    told = json.loads((tmp_path / "out/wsmerge.json").read_text())
    assert [item["model"] for item in told["models"]] == ["base", "one"]
    assert told["models"][1]["files"] == {"model.safetensors": (one / "model.safetensors").stat().st_size}
    assert told["numerics"] == numerics.to_dict()
    assert told["recipe"] == {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "one", "parameters": {"weight": 0.5}}],
        "directions": [{"direction": "kind@1.0.0", "weight": 0.5}],
        "out_dtype": "float32",
    }
    assert [item["label"] for item in told["directions"]] == ["kind@1.0.0"]
    digest = hashlib.sha256((tmp_path / "out/model.safetensors").read_bytes()).hexdigest()
    assert told["outputs"]["model.safetensors"]["sha256"] == digest == report.outputs["model.safetensors"]
    assert set(told["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert told["warnings"] == list(report.warnings)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("style", ["plain", "slash", "dots", "mapping", "relative", "inline", "tokenizer"])
def test_no_path_of_this_machine_is_written(models, tmp_path, style, monkeypatch):
    base, one = models
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(models, dype="float32")  # a warning, which names the recipe's file
    if style == "slash":
        recipe["base_model"], recipe["models"][0]["model"] = f"{base}/", f"{one}//"
    if style == "dots":
        recipe["base_model"] = f"{base.parent}/./x/../base" if (tmp_path / "x").mkdir() is None else ""
    if style == "mapping":
        recipe["models"][0]["model"] = {"model": {"path": str(one)}}
    if style == "relative":
        recipe["models"][0]["model"] = "./one"
    if style == "inline":
        recipe["models"] += entries((direction(base, tmp_path / "kind"), {"weight": 1}))
    if style == "tokenizer":
        token = {"kind": "model_token", "model": str(one), "token_id": 3}
        recipe["tokenizer"] = {"source": str(one), "tokens": {"<|new|>": {"source": token, "force": True}}}
    path = tmp_path / "my-recipe.yml"
    path.write_text(json.dumps(recipe))
    report = merge(tmp_path / "out", path)
    assert any("my-recipe.yml" in line and "dype" in line for line in report.warnings)
    for file in (tmp_path / "out").iterdir():
        text = file.read_bytes()
        assert str(tmp_path).encode() not in text, file.name
        assert b"./one" not in text, file.name
    told = json.loads((tmp_path / "out/wsmerge.json").read_text())["recipe"]
    assert "base" in json.dumps(told["base_model"])
    if style == "inline":
        assert told["models"][1]["direction"] == "kind@1.0.0"


def test_a_lone_file_brings_nothing_along(tmp_path):
    folder = model(tmp_path / "base")
    (folder / "LICENSE").write_text("free")
    assert {path.name for path in carried_files(folder)} == {"config.json", "LICENSE"}
    assert {path.name for path in carried_files(folder / "model.safetensors")} == {"config.json", "LICENSE"}
    (folder / "config.json").unlink()
    assert not list(carried_files(folder / "model.safetensors"))


def test_layers_and_vocabulary_of_the_config(tmp_path):
    base = model(tmp_path / "base", shapes=llama_shapes(layers=3))
    slices = [{"sources": [{"model": str(base), "layer_range": part}]} for part in ([0, 3], [1, 3])]
    merge(tmp_path / "out", {"merge_method": "passthrough", "slices": slices, "dtype": "float16"})
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"]) == (5, "float16")
