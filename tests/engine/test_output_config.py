"""The output's `config.json` against what mergekit saves, as transformers loads both."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsmerge.engine.output_config import output_config

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
SMALL = SIZES | {"num_hidden_layers": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
SOURCES = [0, 1, 1, 2, 2]
# Class of the configuration, its settings, class of the model.
DONORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", SMALL | {"dtype": "float16"}, "LlamaForCausalLM"),
    "mistral": ("MistralConfig", SMALL, "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", SMALL | {"dtype": "float32"}, "Qwen2ForCausalLM"),
    "gemma2": ("Gemma2Config", SMALL, "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", SMALL | {"sliding_window_pattern": 3}, "Gemma3ForCausalLM"),
    "gemma3 with images": (
        "Gemma3Config",
        {"text_config": SMALL, "vision_config": VISION, "dtype": "float16"},
        "Gemma3ForConditionalGeneration",
    ),
    "gpt2": (
        "GPT2Config",
        {"n_layer": 4, "n_head": 2, "n_embd": 32, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 1},
        "GPT2LMHeadModel",
    ),
    "gpt-neox": ("GPTNeoXConfig", SMALL, "GPTNeoXForCausalLM"),
    "phi3": ("Phi3Config", SMALL, "Phi3ForCausalLM"),
    "mixtral": ("MixtralConfig", SMALL, "MixtralForCausalLM"),
    "t5": ("T5Config", {"num_layers": 4, "num_decoder_layers": 3, "d_model": 32}, "T5ForConditionalGeneration"),
}
# Those that store one entry a layer.
WITH_LISTS = {"qwen2", "gemma2", "gemma3", "gemma3 with images"}

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*deprecated")  # mergekit sets the old name


@cache
def mergekit() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
        import mergekit.merge  # noqa: PLC0415 - seven seconds, for these tests alone
    return mergekit


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    mergekit()
    logging.disable(logging.ERROR)  # mergekit warns of modules without layers
    yield
    logging.disable(logging.NOTSET)


def make_donor(name: str, folder: Path) -> Path:
    import transformers  # noqa: PLC0415 - heavy, for these tests alone

    config, settings, model = DONORS[name]
    folder.mkdir()
    getattr(transformers, config)(**settings, architectures=[model]).save_pretrained(str(folder))
    return folder


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def loaded(folder: Path) -> dict[str, Any]:
    """All that transformers makes of a folder's configuration."""
    import transformers  # noqa: PLC0415 - heavy, for these tests alone

    found: dict[str, Any] = transformers.AutoConfig.from_pretrained(str(folder)).to_dict()
    return {key: value for key, value in found.items() if key not in ("transformers_version", "_name_or_path")}


def loaded_from(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return loaded(folder)


def architecture_of(donor: Path) -> Any:
    import transformers  # noqa: PLC0415 - heavy, for these tests alone

    found = mergekit().architecture.arch_info_for_config(transformers.AutoConfig.from_pretrained(str(donor)))
    assert found is not None
    return found


def layer_keys(architecture: Any) -> dict[str, str]:
    """By module, the key of its number of layers."""
    keys = {name: module.architecture for name, module in architecture.modules.items()}
    return {name: module.num_layers_config_key() for name, module in keys.items() if module.num_layers_config_key()}


def mergekits(donor: Path, *, slices: bool, dtypes: Mapping[str, str], vocab: int | None) -> Any:
    """The configuration object that mergekit makes for a merge of `donor` alone."""
    architecture = architecture_of(donor)
    model = {"model": str(donor)}
    ranges = [(0, 2), (1, 3), (2, 3)]
    picked = {"slices": [{"sources": [model | {"layer_range": part}]} for part in ranges]}
    parts: dict[str, Any] = {"models": [model]}
    if slices:
        parts = {"modules": dict.fromkeys(layer_keys(architecture), picked)}
    config = mergekit().config.MergeConfiguration(merge_method="passthrough", **parts, **dtypes)
    result = mergekit().merge._model_out_config(config, architecture)
    if vocab is not None:
        tokenizer = SimpleNamespace(get_vocab=lambda: range(vocab))
        mergekit().merge._update_config_vocab(result, architecture, tokenizer, pad_to_multiple_of=8)
    return result


def refused(config: Any, folder: Path) -> None:
    config.save_pretrained(str(folder))
    loaded(folder)


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("name", DONORS)
def test_the_configuration_is_mergekits(name, slices, tmp_path):
    donor = make_donor(name, tmp_path / "donor")
    architecture = architecture_of(donor)
    keys = layer_keys(architecture).values()
    ours = output_config(
        stored(donor),
        dtype="bfloat16",
        layers=dict.fromkeys(keys, len(SOURCES)) if slices else None,
        source_layers=dict.fromkeys(keys, SOURCES) if slices else None,
        vocab_size=80,
        vocab_size_key=architecture.vocab_size_config_key or "vocab_size",
    )
    theirs = mergekits(donor, slices=slices, dtypes={"dtype": "bfloat16"}, vocab=77)
    if slices and name in WITH_LISTS:
        # mergekit's is refused when it is saved, or when it is loaded: repair it as ours should be.
        with pytest.raises(Exception, match="must be equal to the number of `layer_types`"):
            refused(theirs, tmp_path / "refused")
        text = getattr(theirs, "text_config", theirs)
        text.layer_types = [text.layer_types[source] for source in SOURCES]
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert loaded_from(ours, tmp_path / "ours") == loaded(tmp_path / "theirs")


@pytest.mark.parametrize("dtypes", [{}, {"dtype": "float16"}, {"dtype": "float16", "out_dtype": "bfloat16"}])
def test_the_dtype_is_the_recipes_out_dtype_then_its_dtype(dtypes, tmp_path):
    donor = make_donor("llama", tmp_path / "donor")
    mergekits(donor, slices=False, dtypes=dtypes, vocab=None).save_pretrained(str(tmp_path / "theirs"))
    ours = output_config(stored(donor), dtype=dtypes.get("out_dtype", dtypes.get("dtype")))
    assert loaded_from(ours, tmp_path / "ours") == loaded(tmp_path / "theirs")


def test_an_old_name_and_nested_sections_get_the_dtype_too():
    donor = {"torch_dtype": "float32", "text_config": {"torch_dtype": "float32"}, "vision_config": {"dtype": "float32"}}
    assert output_config(donor, dtype="bfloat16") == {
        "torch_dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16"},
        "vision_config": {"dtype": "bfloat16"},
    }


def test_the_donor_is_left_as_it_is():
    donor = {"num_hidden_layers": 2, "layer_types": ["a", "b"], "text_config": {"dtype": "float32"}}
    before = json.dumps(donor)
    output_config(donor, dtype="bfloat16", layers={"num_hidden_layers": 1}, source_layers={"num_hidden_layers": [1]})
    assert json.dumps(donor) == before


def picked(donor: Mapping[str, Any], sources: list[int] | None, count: int | None = None) -> dict[str, Any]:
    key = "num_hidden_layers"
    count = len(sources or []) if count is None else count
    return output_config(donor, layers={key: count}, source_layers=None if sources is None else {key: sources})


def test_lists_of_one_entry_a_layer_follow_their_layers():
    donor = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "no_rope_layers": [1, 1, 0],
        "block_configs": [{"n": 0}, {"n": 1}, {"n": 2}],
        "hybrid_override_pattern": "M-*",
        "model_type": "abc",
        "mlp_only_layers": [0, 2],
        "mrope_section": [8, 8],
        "eos_token_id": [1, 2, 3],
    }
    assert picked(donor, [2, 0, 0, 1]) == donor | {
        "num_hidden_layers": 4,
        "layer_types": ["c", "a", "a", "b"],
        "no_rope_layers": [0, 1, 1, 1],
        "block_configs": [{"n": 2}, {"n": 0}, {"n": 0}, {"n": 1}],
        "hybrid_override_pattern": "*MM-",
        "mlp_only_layers": [0, 1, 2],
    }


def test_without_sources_the_first_layers_are_meant():
    donor = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    assert picked(donor, None, 2)["layer_types"] == ["a", "b"]
    assert picked(donor, None, 3) == donor
    assert "layer_types" not in picked(donor, None, 4)


def test_equally_many_layers_in_another_order_move_their_entries():
    assert picked({"num_hidden_layers": 2, "layer_types": ["a", "b"]}, [1, 0])["layer_types"] == ["b", "a"]


def test_layers_that_the_donor_does_not_have_leave_the_list_to_transformers():
    assert picked({"num_hidden_layers": 2, "layer_types": ["a", "b"]}, [0, 5]) == {"num_hidden_layers": 2}


def test_a_donor_that_leaves_its_number_of_layers_out():
    assert picked({"layer_types": ["a", "b"]}, [1, 1, 0]) == {"layer_types": ["b", "b", "a"], "num_hidden_layers": 3}


def test_no_layers_at_all():
    assert picked({"num_hidden_layers": 2, "layer_types": ["a", "b"]}, []) == {
        "num_hidden_layers": 0,
        "layer_types": [],
    }


@pytest.mark.parametrize(
    ("donor", "key", "wanted"),
    [
        ({"vocab_size": 4}, "vocab_size", {"vocab_size": 9}),
        ({}, "vocab_size", {"vocab_size": 9}),
        ({"text_config": {"vocab_size": 4}}, "vocab_size", {"text_config": {"vocab_size": 9}}),
        (
            {"vocab_size": 4, "text_config": {"vocab_size": 4}},
            "vocab_size",
            {"vocab_size": 9, "text_config": {"vocab_size": 9}},
        ),
        ({"vocab_size": 4}, "text_config.vocab_size", {"vocab_size": 9}),
        ({"text_config": {}}, "text_config.vocab_size", {"text_config": {"vocab_size": 9}}),
        (
            {"vocab_size": 4, "text_config": {}},
            "text_config.vocab_size",
            {"vocab_size": 4, "text_config": {"vocab_size": 9}},
        ),
        ({}, "text_config.vocab_size", {"text_config": {"vocab_size": 9}}),
        ({"depth": 4}, "vision_config.vocab_size", {"depth": 4, "vision_config": {"vocab_size": 9}}),
    ],
)
def test_the_vocabulary_is_set_where_the_model_reads_it(donor, key, wanted):
    assert output_config(donor, vocab_size=9, vocab_size_key=key) == wanted


@pytest.mark.parametrize(
    ("donor", "wanted"),
    [
        ({}, {"tie_word_embeddings": False}),
        ({"tie_word_embeddings": True, "text_config": {}}, {"tie_word_embeddings": False, "text_config": {}}),
        (
            {"text_config": {"tie_word_embeddings": True}},
            {"text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": False},
        ),
    ],
)
def test_an_own_output_embedding_is_said_everywhere(donor, wanted):
    assert output_config(donor, untied=True) == wanted
    assert output_config(donor, untied=False) == output_config(donor) == donor


def test_a_repaired_configuration_makes_a_model(tmp_path):
    import transformers  # noqa: PLC0415 - heavy, for these tests alone

    donor = stored(make_donor("gemma3", tmp_path / "donor"))
    ours = picked(donor, SOURCES)
    assert [donor["layer_types"][source] for source in SOURCES] == ours["layer_types"]
    assert len(set(ours["layer_types"])) == 2
    loaded_from(ours, tmp_path / "ours")
    config = transformers.AutoConfig.from_pretrained(str(tmp_path / "ours"))
    assert len(transformers.AutoModelForCausalLM.from_config(config).model.layers) == 5
