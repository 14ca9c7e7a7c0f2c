"""The built tokenizer against mergekit's: same tokens, same added tokens, same files, same encodings."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.vocabulary.made import TEMPLATE, make_tokenizer, mergekit, mergekits_info, ordered_tokens
from wsmerge.engine.vocabulary import (
    TokenSource,
    Vocabulary,
    VocabularyModel,
    VocabularySettings,
    build_vocabulary,
    is_tokenizer_file,
)
from wsmerge.errors import RecipeError

pytestmark = pytest.mark.slow

TEXTS = ["hello world wonder", "zebra both helium", "<|a|> hello <x> <|b|>world", "hel wor unknown!"]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    mergekit()
    logging.disable(logging.ERROR)  # mergekit warns of every token
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "a": make_tokenizer(root / "a", ["hello", "world", "wonder"], added=["<|a|>", "<x>"], template=TEMPLATE),
        "b": make_tokenizer(root / "b", ["helium", "hello", "world"], added=["<|b|>", "<x>"], rows=64),
        "c": make_tokenizer(root / "c", ["world", "both", "hello", "zebra"], added=["<|c|>"]),
    }


def models_of(folders: dict[str, Path]) -> list[VocabularyModel]:
    return [VocabularyModel(str(folder), folder) for folder in folders.values()]


def built(
    models: list[VocabularyModel], settings: VocabularySettings, base: VocabularyModel | None = None
) -> Vocabulary:
    found = build_vocabulary(models, settings, base=base)
    assert found is not None
    return found


def loaded(folder: Path) -> Any:
    import transformers  # noqa: PLC0415 - heavy, for these tests alone

    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("base", [0, 1, None])
@pytest.mark.parametrize("source", ["union", "base", "c"])
def test_the_saved_tokenizer_is_mergekits(source, base, folders, tmp_path, monkeypatch):
    models = models_of(folders)
    label = None if base is None else models[base].label
    wanted = models[2] if source == "c" else source
    tokens = ["<|new|>", "hello"]
    settings = VocabularySettings(wanted, {token: TokenSource("zero") for token in tokens}, 16)
    ours = built(models, settings, None if base is None else models[base])
    labels = [model.label for model in models]
    with ordered_tokens(monkeypatch):
        info = mergekits_info(labels, labels[2] if source == "c" else source, base=label, tokens=tokens)
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    names = ours.save(tmp_path / "ours")
    info.tokenizer.save_pretrained(str(tmp_path / "theirs"), safe_serialization=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == files
    assert set(names) == set(files)
    assert all(is_tokenizer_file(name) for name in names)
    one, other = loaded(tmp_path / "ours"), loaded(tmp_path / "theirs")
    assert one.get_vocab() == other.get_vocab() == ours.token_ids
    assert one.added_tokens_decoder == other.added_tokens_decoder
    for text in TEXTS:
        assert one(text)["input_ids"] == other(text)["input_ids"]
    assert ours.size % 16 == 0
    assert 0 <= ours.config_vocab_size - len(ours.token_ids) < 16


@pytest.mark.parametrize("source", ["union", "base", "c"])
def test_permutations_are_mergekits(source, folders, monkeypatch):
    models = models_of(folders)
    labels = [model.label for model in models]
    ours = built(models, VocabularySettings(models[2] if source == "c" else source), models[0])
    with ordered_tokens(monkeypatch):
        info = mergekits_info(labels, labels[2] if source == "c" else source, base=labels[0])
    reference = mergekit().common.ModelReference.model_validate
    for label in labels:
        theirs = info.permutations[reference(label)]
        assert dict(enumerate(ours.permutations[label].tolist())) == theirs
        assert ours.model_tokens[label] == info.original_vocabs[reference(label)]


def test_a_union_has_the_same_ids_each_time_and_mergekits_tokens(folders):
    models = models_of(folders)
    labels = [model.label for model in models]
    first, second = (built(models, VocabularySettings("union"), models[0]) for _ in range(2))
    assert first.token_ids == second.token_ids
    info = mergekits_info(labels, "union", base=labels[0])
    theirs = info.tokenizer.get_vocab()
    assert set(first.token_ids) == set(theirs)
    kept = loaded(folders["a"]).get_vocab()
    assert {token: first.token_ids[token] for token in kept} == {token: theirs[token] for token in kept}


def test_the_base_comes_first_and_the_rest_as_in_the_recipe(folders):
    a, b, c = models_of(folders)
    ours = built([a, b, c], VocabularySettings("union"), c)
    kept = len(loaded(folders["c"]).get_vocab())
    added = [token for token, number in ours.token_ids.items() if number >= kept]
    of_a = [token for token in added if token in ours.model_tokens[a.label]]
    only_b = [token for token in added if token not in of_a]
    assert only_b
    plain = [token for token in added if not token.startswith("<")]
    assert plain == [token for token in plain if token in of_a] + [token for token in plain if token in only_b]


def test_rows_beyond_the_vocabulary_count_as_missing(folders, tmp_path):
    """mergekit stops with a KeyError here."""
    cut = make_tokenizer(tmp_path / "cut", ["hello", "world"], added=["<x>"], rows=14)
    tokens = loaded(cut).get_vocab()
    beyond = {token for token, number in tokens.items() if number >= 14}
    assert beyond
    a, other = models_of(folders)[0], VocabularyModel("cut", cut)
    ours = built([a, other], VocabularySettings("union"), a)
    assert {token for token in beyond if ours.permutations["cut"][ours.token_ids[token]] == -1} == beyond
    assert any("no rows for" in note and "cut" in note for note in ours.notes)


def test_a_base_with_unused_tokens_loses_them_as_in_mergekit(folders, tmp_path, monkeypatch):
    whole = make_tokenizer(tmp_path / "whole", ["hello", "world"], added=["<x>", "<y>"])
    rows = len(loaded(whole)) - 2
    cut = make_tokenizer(tmp_path / "cut", ["hello", "world"], added=["<x>", "<y>"], rows=rows)
    c = models_of(folders)[2]
    base = VocabularyModel(str(cut), cut)
    ours = built([base, c], VocabularySettings("base"), base)
    with ordered_tokens(monkeypatch):
        info = mergekits_info([str(cut), c.label], "base", base=str(cut))
    assert ours.token_ids == info.tokenizer.get_vocab()
    assert len(ours.token_ids) == rows


def test_adapters_on_one_model_share_its_tokenizer(folders):
    a = models_of(folders)[0]
    adapted = VocabularyModel(f"{a.label}+lora", a.folder)
    ours = built([a, adapted, models_of(folders)[1]], VocabularySettings("union"), a)
    np.testing.assert_array_equal(ours.permutations[a.label], ours.permutations[adapted.label])
    assert len(ours.permutations) == 3


def test_a_model_without_a_tokenizer_is_taken_to_have_the_bases(folders, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 64}))
    a, bare = models_of(folders)[0], VocabularyModel("bare", tmp_path / "bare")
    ours = built([a, bare], VocabularySettings("union"), a)
    np.testing.assert_array_equal(ours.permutations["bare"], ours.permutations[a.label])
    assert any(note.startswith("the tokenizer of bare cannot be read") for note in ours.notes)


def test_a_base_without_a_tokenizer_is_an_error(folders, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 64}))
    bare = VocabularyModel("bare", tmp_path / "bare")
    with pytest.raises(RecipeError, match="the output's tokenizer cannot be built") as caught:
        build_vocabulary([bare, *models_of(folders)], VocabularySettings("union"))
    assert caught.value.where == "bare"
    assert caught.value.hint


def test_a_token_that_cannot_be_added_is_an_error(folders):
    with pytest.raises(RecipeError, match="the tokenizer does not take ''"):
        build_vocabulary(models_of(folders), VocabularySettings("base", {"": TokenSource("zero")}))


def test_saving_with_a_chat_template_replaces_the_tokenizers(folders, tmp_path):
    ours = built(models_of(folders), VocabularySettings("base"))
    names = ours.save(tmp_path, "{{ messages }} of the recipe")
    assert "chat_template.jinja" in names
    assert loaded(tmp_path).chat_template == "{{ messages }} of the recipe"


def test_which_files_a_saved_tokenizer_replaces():
    assert is_tokenizer_file("tokenizer.json")
    assert is_tokenizer_file("additional_chat_templates/tool_use.jinja")
    assert not is_tokenizer_file("generation_config.json")
    assert not is_tokenizer_file("config.json")


def test_a_configuration_of_sections_loses_no_added_token(tmp_path):
    folders = {
        "one": make_tokenizer(tmp_path / "one", ["hello", "world"], added=["<|a|>", "<x>"]),
        "two": make_tokenizer(tmp_path / "two", ["hello", "zebra"], added=["<|b|>"]),
    }
    for folder in folders.values():
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        sections = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
        text = {"model_type": "llama", "vocab_size": rows}
        (folder / "config.json").write_text(json.dumps(sections | {"text_config": text}))
    ours = built(models_of(folders), VocabularySettings("union"))
    assert {"<|a|>", "<x>", "<|b|>"} <= ours.token_ids.keys()
    assert all(ours.permutations[str(folders["two"])][ours.token_ids[token]] >= 0 for token in ("<|b|>", "zebra"))
