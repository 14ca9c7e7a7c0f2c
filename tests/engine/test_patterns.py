"""Regular expressions of strangers: matched as `re` does, and never for longer than it takes to say so."""

import re

import pytest

from wsmerge.engine import patterns
from wsmerge.engine.patterns import first_matches, is_pattern
from wsmerge.errors import AdapterError

NAMES = ["model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "lm_head"]


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["up_proj"],
        ["layers.1", "layers.10.mlp.up_proj", "up_proj"],
        [r".*\.up_proj"],
        ["^model.*", "lm_head|q_proj"],
        [r"layers\.(0|1)\.mlp\..*", r"layers\.\d+\..*", "(lm_)?head"],
        [r"(?<=x)head", r"(?!model).*"],
    ],
)
def test_the_first_key_that_matches_as_peft_has_it(keys):
    expected = [next((i for i, key in enumerate(keys) if re.match(rf"(.*\.)?({key})$", name)), None) for name in NAMES]
    assert first_matches(keys, NAMES) == expected


@pytest.mark.parametrize("key", ["(", "(?i)up_proj", "a{99999999999999999999}", "(" * 5000, "a" * 5000])
def test_what_peft_cannot_match_is_no_pattern(key):
    assert not is_pattern(key)


@pytest.mark.parametrize("key", ["([a-z_.0-9]+)+!", r"(\w|\w)*!", "(?:(?:.?){500}){500}!"])
def test_work_is_bounded(key, monkeypatch):
    monkeypatch.setattr(patterns, "_CHILD", patterns._CHILD.replace("(3, 3)", "(1, 1)"))
    assert is_pattern(key)
    with pytest.raises(AdapterError, match="take too long"):
        first_matches([key], ["a_proj" * 20, *NAMES])
