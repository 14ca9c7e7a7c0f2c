"""Model folders of strangers: nothing is read or copied from outside of them, nothing waits, every refusal is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.engine.merging.made import direction, entries, merge, model
from wsmerge.engine.locate import locate_model
from wsmerge.errors import CheckpointError, WsmergeError

PRIVATE = "PRIVATE-KEY-XYZ"


@pytest.fixture
def base(tmp_path):
    (tmp_path / "id_rsa").write_text(PRIVATE)
    return model(tmp_path / "base")


def recipe_of(*models: Path) -> dict[str, object]:
    return {"merge_method": "linear", "models": entries(*((item, {"weight": 1.0}) for item in models))}


def link(target: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "notes.txt", "NOTICE", "Licence", "vocab.bpe", "chat_template.jinja", "code.py"],
)
def test_links_to_private_files_are_refused_and_never_copied(base, tmp_path, name):
    link(tmp_path / "id_rsa", base / name)
    with pytest.raises(CheckpointError, match=f"{name}: is a link out of its folder.*put a copy"):
        merge(tmp_path / "out", recipe_of(base))
    assert not list(tmp_path.glob("out*"))


def test_links_of_folders_of_templates_are_refused(base, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tool.jinja").write_text(PRIVATE)
    link(tmp_path / "elsewhere", base / "additional_chat_templates")
    with pytest.raises(CheckpointError, match="additional_chat_templates"):
        locate_model(str(base))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(base, tmp_path, name, kind):
    (base / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(base / name)
    elif kind == "device":
        link(Path("/dev/zero"), base / name)
    else:
        (base / name).mkdir()
    if (name, kind) == ("tokenizer.json", "folder"):
        assert locate_model(str(base)) == base  # a folder of that name is nobody's tokenizer, and is not copied
        return
    with pytest.raises(WsmergeError):
        merge(tmp_path / "out", recipe_of(base))


def test_links_within_the_folder_and_to_it_are_fine(base, tmp_path):
    (base / "notes.txt").write_text("mine")
    link(Path("notes.txt"), base / "same.txt")
    link(base, tmp_path / "named")
    merge(tmp_path / "out", recipe_of(tmp_path / "named"))
    assert (tmp_path / "out" / "same.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "same.txt").is_symlink()


def test_weights_on_another_disk_are_read_and_told(base, tmp_path):
    (tmp_path / "disk").mkdir()
    weights = (base / "model.safetensors").rename(tmp_path / "disk" / "weights")
    link(weights, base / "model.safetensors")
    report = merge(tmp_path / "out", recipe_of(base))
    assert [line for line in report.warnings if "link out of the folder" in line and str(weights) in line]
    assert list(safe_open(tmp_path / "out" / "model.safetensors", "pt").keys()) == list(safe_open(weights, "pt").keys())


@pytest.mark.parametrize(
    "named", ["../private/model.safetensors", "/{}/private/model.safetensors", "a/../../private/x"]
)
def test_weights_that_a_config_names_outside_are_refused(base, tmp_path, named):
    model(tmp_path / "private", seed=7)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": named.format(tmp_path)}))
    with pytest.raises(CheckpointError, match="outside of the folder"):
        merge(tmp_path / "out", recipe_of(base))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"model_type": []}'),
        ("config.json", '{"architectures": [{}]}'),
        ("config.json", "[" * 100_000),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "[" * 100_000 + "]" * 100_000),
        ("wsmerge_origin.json", "[" * 100_000),
        ("wsmerge_origin.json", '{"model": "a/b\\n\\n# Injected"}'),
        ("model.safetensors.index.json", json.dumps({"weight_map": {"a": "a" * 5000}})),
    ],
)
def test_files_that_cannot_be_are_told(base, tmp_path, file, text):
    if file.endswith("index.json"):
        (base / "model.safetensors").unlink()
    (base / file).write_text(text)
    with pytest.raises(WsmergeError):
        merge(tmp_path / "out", recipe_of(base) | {"chat_template": "auto"})
    assert not list(tmp_path.glob("out*"))


def test_a_card_says_nothing_that_an_origin_file_wrote(base, tmp_path):
    (base / "wsmerge_origin.json").write_text(json.dumps({"model": "acme/base", "origin": "x\n# Injected <script>"}))
    made = direction(base, tmp_path / "kind")
    merge(tmp_path / "out", {"base_model": str(base), "directions": [{"direction": str(made), "weight": 1.0}]})
    for card in (made / "README.md", tmp_path / "out" / "README.md"):
        assert "acme/base" in card.read_text()
        assert "\n# Injected" not in card.read_text()
        assert "<script>" not in card.read_text()
