"""The manifest: canonical bytes, unknown fields, digests, and every problem told at once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.errors import ManifestError
from wsmerge.registry import Manifest, parse_manifest

MAX_EXACT = 2**53 - 1
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_EXACT, MAX_EXACT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=6,
)
unknown_fields = st.dictionaries(st.from_regex(r"x_[a-z]{1,6}", fullmatch=True), json_values, max_size=3)


def low_rank_row(**changes: Any) -> dict[str, Any]:
    row = {
        "name": "model.layers.0.mlp.up_proj.weight",
        "representation": "low_rank",
        "shape": [6, 4],
        "rank": 2,
        "layout": "linear",
        "norm": 1.5,
        "components": [
            {"component": "lora_A", "dtype": "F32", "shape": [2, 4], "sha256": "a" * 64},
            {"component": "lora_B", "dtype": "F32", "shape": [6, 2], "sha256": "b" * 64},
        ],
    }
    return row | changes


def dense_row(**changes: Any) -> dict[str, Any]:
    row = {
        "name": "model.norm.weight",
        "representation": "dense",
        "shape": [4],
        "norm": 0.5,
        "components": [{"component": "delta", "dtype": "F32", "shape": [4], "sha256": "c" * 64}],
    }
    return row | changes


def fields(**changes: Any) -> dict[str, Any]:
    whole = {
        "schema": "wsmerge.direction/v1",
        "name": "formal",
        "version": "1.0.0",
        "description": "Formal against casual.",
        "kind": "contrastive",
        "base": {"model": "acme/base", "structure": "0" * 64, "weights": "1" * 64, "tied": {}},
        "poles": [{"pole": "plus", "source": "./plus", "training": {"steps": 40}}],
        "datasets": [{"source": "acme/pairs", "count": 12}],
        "layers": {"model.layers": [0]},
        "modules": ["mlp.up_proj", "norm"],
        "tensors": [low_rank_row(), dense_row()],
        "norm": 1.6,
        "licence": None,
        "parents": [],
        "tool": "wsmerge/0.1.0",
        "created": "2026-01-01T00:00:00Z",
    }
    return whole | changes


@given(unknown_fields, unknown_fields, unknown_fields)
def test_unknown_fields_survive_at_every_level(top, in_base, in_row):
    given_fields = fields(**top)
    given_fields["base"] |= in_base
    given_fields["tensors"] = [low_rank_row(**in_row), dense_row()]
    data = canonical_json(given_fields)
    manifest = parse_manifest(data)
    assert manifest.canonical_bytes() == data
    assert manifest.version_digest == sha256_hex(data)
    again = manifest.replaced(version="1.1.0")
    assert again.canonical_bytes() == data.replace(b'"version":"1.0.0"', b'"version":"1.1.0"')
    assert again.content_digest == manifest.content_digest
    assert again.version_digest != manifest.version_digest


def test_all_problems_are_told_at_once():
    bad = fields(kind="vibes", norm=-1, version=1, licence=3)
    bad["base"] = {"model": "", "structure": "xyz"}
    with pytest.raises(ManifestError) as caught:
        Manifest.of(bad, where="f/direction.json")
    told = str(caught.value)
    assert told.startswith("f/direction.json: ")
    for key in ("kind", "norm", "version", "licence", "base.model", "base.structure", "base.weights"):
        assert f"- {key}: " in told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Not A Name"}, "name: "),
        ({"version": "1.0"}, "version: "),
        ({"tensors": []}, "there are none"),
        ({"tensors": [dense_row(), dense_row()]}, "2 rows"),
        ({"tensors": [dense_row(norm=math.nan)]}, "norm"),
        ({"tensors": [dense_row(rank=1)]}, "neither rank nor layout"),
        ({"tensors": [dense_row(module="model.norm")]}, "nor module"),
        (
            {"tensors": [low_rank_row(), low_rank_row(name="up", module="model.layers.0.mlp.up_proj")]},
            "2 rows are of module",
        ),
        ({"tensors": [low_rank_row(module="")]}, "module"),
        ({"tensors": [dense_row(shape=[5])]}, "do not make [5]"),
        ({"tensors": [low_rank_row(rank=3)]}, "do not make [6, 4]"),
        ({"tensors": [low_rank_row(layout="transposed")]}, "do not make [6, 4]"),
        ({"tensors": [{key: value for key, value in low_rank_row().items() if key != "rank"}]}, "needs rank"),
        ({"norm": math.inf}, "norm"),
        ({"x_large": 2**60}, "manifest: "),
    ],
)
def test_what_does_not_go_together_is_refused(changes, says):
    with pytest.raises(ManifestError) as caught:
        Manifest.of(fields(**changes))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff", "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"{}", "schema is None"),
        (canonical_json(fields(schema="wsmerge.direction/v9")), "a newer wsmerge"),
        (json.dumps(fields(), sort_keys=True).encode(), "not canonical"),
        (canonical_json(fields()).replace(b'"norm":1.6', b'"norm":1.6,"norm":1.6'), "not canonical"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(data, says):
    with pytest.raises(ManifestError) as caught:
        parse_manifest(data, where="direction.json")
    assert says in str(caught.value)
    assert caught.value.hint


def test_laying_factors_out_the_other_way_is_another_content():
    square = low_rank_row(shape=[4, 4])
    square["components"][1] = square["components"][1] | {"shape": [4, 2]}
    as_linear = Manifest.of(fields(tensors=[square]))
    as_transposed = Manifest.of(fields(tensors=[square | {"layout": "transposed"}]))
    as_embedding = Manifest.of(fields(tensors=[square | {"layout": "embedding"}]))
    assert as_linear.content_digest != as_transposed.content_digest
    assert as_transposed.content_digest == as_embedding.content_digest
