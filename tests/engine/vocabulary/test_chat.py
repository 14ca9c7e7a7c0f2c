"""Chat templates against mergekit's `_set_chat_template`, and the donor's tokenizer saved with another one."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.vocabulary.made import TEMPLATE, make_tokenizer, mergekit
from wsmerge.engine.vocabulary import chat_template_text, reserialise_tokenizer
from wsmerge.engine.vocabulary.chat import named_templates, stored_template
from wsmerge.errors import CheckpointError, RecipeError

OTHER = "{{ messages[0]['content'] }} and nothing else"


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    mergekit()
    logging.disable(logging.ERROR)  # mergekit warns of tokenizers that it cannot load
    yield
    logging.disable(logging.NOTSET)


def loaded(folder: Path) -> Any:
    import transformers  # noqa: PLC0415 - heavy, for these tests alone

    return transformers.AutoTokenizer.from_pretrained(str(folder))


def mergekits(setting: str, folders: list[Path]) -> Any:
    """The template that mergekit sets, None where it sets none."""
    reference = mergekit().common.ModelReference.model_validate
    config = SimpleNamespace(
        chat_template=setting, referenced_models=lambda: [reference(str(folder)) for folder in folders]
    )
    tokenizer = SimpleNamespace(chat_template=None)
    mergekit().merge._set_chat_template(tokenizer, config)
    return tokenizer.chat_template


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {
        name: make_tokenizer(root / name, ["hello"], template=template)
        for name, template in [
            ("plain", TEMPLATE),
            ("spaced", f"\n {TEMPLATE}\n\n"),
            ("other", OTHER),
            ("none", None),
            ("listed", None),
            ("unlisted", None),
            ("inside", None),
            ("extra", OTHER),
            ("only extra", None),
        ]
    }
    for name, held in [
        ("listed", [{"name": "tool_use", "template": TEMPLATE}, {"name": "default", "template": OTHER}]),
        ("unlisted", [{"name": "tool_use", "template": TEMPLATE}]),
        ("inside", TEMPLATE),
        ("only extra", TEMPLATE),
    ]:
        path = made[name] / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": held}))
    for name in ("extra", "only extra"):
        (made[name] / "additional_chat_templates").mkdir()
        (made[name] / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
    return made


def test_stored_templates_are_those_that_transformers_loads(folders):
    for name, folder in folders.items():
        theirs = loaded(folder).chat_template
        theirs = theirs.get("default") if isinstance(theirs, dict) else theirs
        assert stored_template(folder) == theirs, name
    assert {name for name, folder in folders.items() if stored_template(folder)} == {
        "plain", "spaced", "other", "listed", "inside", "extra",
    }  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ["plain"],
        ["other", "plain", "spaced"],
        ["other", "plain"],
        ["plain", "other"],
        ["none", "listed", "extra", "plain"],
        ["unlisted", "none"],
        ["inside", "other", "only extra"],
    ],
)
def test_auto_takes_mergekits_choice_and_the_first_of_equals(names, folders):
    chosen = [folders[name] for name in names]
    assert chat_template_text("auto", chosen) == mergekits("auto", chosen)


@pytest.mark.parametrize("setting", ["chatml", "alpaca", "mistral", "llama3", "exaone", OTHER, f"{TEMPLATE}\n" * 9])
def test_names_and_texts_give_mergekits(setting):
    found = chat_template_text(setting, [])
    assert found == mergekits(setting, [])
    assert found


@pytest.mark.parametrize(
    "setting", ["chatm1", "{{ short }}", "a long sentence that is no template at all", "../chatml"]
)
def test_what_is_no_template_is_refused_as_in_mergekit(setting):
    with pytest.raises(RuntimeError):
        mergekits(setting, [])
    with pytest.raises(RecipeError, match="is no chat template") as caught:
        chat_template_text(setting, [])
    assert all(name in str(caught.value.hint) for name in named_templates())


def test_nothing_set_keeps_the_tokenizers_own(folders):
    assert chat_template_text(None, list(folders.values())) is None
    assert chat_template_text("", list(folders.values())) is None


def test_a_damaged_tokenizer_configuration_is_an_error(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="chat template cannot be read"):
        stored_template(tmp_path)


@pytest.mark.parametrize(
    ("stored", "template"),
    [
        ([{"x": 1}], None),
        ([{"name": ["default"], "template": "t"}], None),
        ([{"name": "default"}], None),
        ([{"name": "default", "template": {"default": "t"}}], None),
        ([{"name": "default", "template": "t"}, {"x": 1}, 5], "t"),
    ],
)
def test_a_list_of_templates_may_hold_anything(tmp_path, stored, template):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert stored_template(tmp_path) == template


def test_reserialising_gives_mergekits_files(folders, tmp_path):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    names = reserialise_tokenizer(folders["plain"], tmp_path / "ours", OTHER)
    reference = mergekit().common.ModelReference.model_validate(str(folders["plain"]))
    config = SimpleNamespace(chat_template=OTHER, base_model=reference)
    mergekit().merge._copy_tokenizer(config, str(tmp_path / "theirs"), mergekit().merge.MergeOptions())
    files = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == files
    assert set(names) == set(files)
    assert loaded(tmp_path / "ours").chat_template == OTHER


def test_a_donor_without_a_tokenizer_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="tokenizer cannot be read") as caught:
        reserialise_tokenizer(tmp_path, tmp_path / "out", OTHER)
    assert caught.value.hint
