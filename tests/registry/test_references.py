"""References and versions: every form, its inverse, and what is refused."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.errors import BadReferenceError
from wsmerge.registry.references import HubReference, PathReference, StoreReference, parse_reference
from wsmerge.registry.versions import Version

# The chain of semver.org, section 11, and what follows it.
ORDERED = [
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0-0",
    "2.0.0",
]

names = st.from_regex(r"[a-z0-9]([a-z0-9._]?[a-z0-9]){0,10}", fullmatch=True).filter(lambda name: ".." not in name)
numbers = st.integers(0, 10**6)
identifiers = st.one_of(numbers.map(str), st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True))
versions = st.builds(Version, numbers, numbers, numbers, st.lists(identifiers, max_size=3).map(tuple))
digests = st.text("0123456789abcdef", min_size=12, max_size=64)
aliases = st.from_regex(r"[a-z]([a-z0-9._-]{0,6}[a-z0-9])?", fullmatch=True)
store_references = st.one_of(
    st.builds(StoreReference, names),
    st.builds(StoreReference, names, st.just("version"), versions.map(str)),
    st.builds(StoreReference, names, st.just("alias"), aliases),
    st.builds(StoreReference, names, st.sampled_from(("sha256", "content")), digests),
)
hub_references = st.builds(
    HubReference, st.tuples(names, names).map("/".join), st.none() | st.sampled_from(("main", "v1", "refs/pr/3"))
)
paths = st.builds(
    PathReference, st.sampled_from(("./", "../", "/", "~/")).flatmap(lambda p: st.text("ab/@ :").map(p.__add__))
)


@given(store_references | hub_references | paths)
def test_formatting_and_parsing_are_inverse(reference):
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_with_the_one_error(text):
    try:
        parsed = parse_reference(text)
    except BadReferenceError:
        return
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("formal", StoreReference("formal")),
        ("acme/Formal", StoreReference("acme/Formal")),
        ("formal@1.2.0", StoreReference("formal", "version", "1.2.0")),
        ("formal@1.2.0-rc.1", StoreReference("formal", "version", "1.2.0-rc.1")),
        ("formal@v2", StoreReference("formal", "alias", "v2")),
        (f"formal@sha256:{'a' * 64}", StoreReference("formal", "sha256", "a" * 64)),
        (f"formal@content:{'0' * 12}", StoreReference("formal", "content", "0" * 12)),
        ("hub:acme/formal@v2", HubReference("acme/formal", "v2")),
        ("./formal@1.0.0", PathReference("./formal@1.0.0")),
    ],
)
def test_each_form(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no name"),
        ("Formal", "lower case"),
        ("a/b/c", "./a/b/c"),
        ("a--b", "without '--'"),
        ("formal@", "neither a version"),
        ("formal@1.2", "all three numbers"),
        ("formal@01.2.0", "no semantic version"),
        ("formal@1.0.0+build", "no semantic version"),
        ("formal@sha256:xyz", "12 to 64 digits"),
        ("formal@sha256:" + "a" * 11, "12 to 64 digits"),
        ("formal@Latest", "neither a version"),
        ("hub:formal", "no Hub repository"),
        ("hub:acme/formal@", "no branch"),
        ("hub:acme/../formal", "no Hub repository"),
        ("formal@a@b", "neither a version"),
        ("../x\0", "NUL"),
    ],
)
def test_what_is_no_reference_is_refused_with_a_hint(text, says):
    with pytest.raises(BadReferenceError, match=re.escape(says)) as caught:
        parse_reference(text)
    assert caught.value.hint


def test_versions_are_ordered_as_semver_says():
    assert [str(version) for version in sorted(map(Version.parse, reversed(ORDERED)))] == ORDERED
    for lower, higher in itertools.combinations(map(Version.parse, ORDERED), 2):
        assert lower < higher
        assert not higher < lower


@given(versions)
def test_the_next_version_is_a_higher_release(version):
    assert version.next() > version
    assert version.next().released
    assert Version.parse(str(version)) == version
