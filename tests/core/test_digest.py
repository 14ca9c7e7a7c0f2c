"""Canonical JSON: what is written quickly is what rfc8785 writes."""

import json

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from wsmerge.core.digest import canonical_json

numbers = st.integers() | st.floats() | st.floats(-1.0, 1.0).map(lambda x: x * 1e-3) | st.integers(-9, 9).map(float)
texts = st.text() | st.text('ab\u20ac\u00e9\ue000\U0001f600\n"\\\x7f\u2028\x1f', max_size=4)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(values)
@example({"\ue000": 1, "\U0001f600": 2})  # by code points the other way round
@example([1e-4, 9.99e-5, 1e-7, 1e15, 1e16, 1e21, 5e-324])
@example([0.0, -0.0, 1.0, -3.0, 2.0**53 - 1, 2.0**53, 2.0**60, 2**53 - 1])
@example([2**53])
@example({"a": float("nan")})
@example(["\ud800"])
def test_canonical_json_is_that_of_rfc8785(value):
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        with pytest.raises(type(error)):
            canonical_json(value)
    else:
        assert canonical_json(value) == expected


def test_what_is_no_json_is_refused():
    for value in ({1: "a"}, {"a": {1, 2}}, [b"bytes"]):
        with pytest.raises(rfc8785.CanonicalizationError):
            canonical_json(value)


def test_canonical_json_can_be_read_again():
    value = {"b": [1, 2.5, None, True], "a": "\u20ac"}
    assert json.loads(canonical_json(value)) == value
