"""Text of strangers on terminals, in JSON and in Markdown."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from wsmerge.core.text import escaped_json, fenced, inline_code, plain_text, printable

EVIL = "\x1b]0;title\x07\x1b[2J\r\x9b31m\x7f\u202egnp.exe\u2066\u200b\ufeff\u2028\ud800\U000e0041"


def is_harmless(text: str) -> bool:
    # Joiners are part of how scripts and emoji are written, and number signs of how Arabic is.
    allowed = {"\n", "\t", "\u200c", "\u200d"}
    kinds = {unicodedata.category(letter) for letter in set(text) - allowed}
    bidirectional = {unicodedata.bidirectional(letter) for letter in text}
    marks = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not bidirectional & marks


def test_controls_are_shown_and_not_obeyed():
    assert is_harmless(printable(EVIL))
    assert printable(EVIL).startswith(
        r"\x1b]0;title\x07\x1b[2J\r\x9b31m\x7f\u202egnp.exe\u2066\u200b\ufeff\u2028\ud800"
    )
    assert printable("e\u0301, \U0001f468\u200d\U0001f469, \u0645\u06cc\u200c\u062e\n\tend") == (
        "e\u0301, \U0001f468\u200d\U0001f469, \u0645\u06cc\u200c\u062e\n\tend"
    )


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_harmless_and_any_json_reads_back(text):
    assert is_harmless(printable(text))
    document = escaped_json({"value": [text]})
    assert is_harmless(document)
    assert json.loads(document) == {"value": [text]}


@pytest.mark.parametrize(
    "text",
    [
        "x\n\n# Injected\n",
        "<script>alert(1)</script>",
        "![pixel](http://evil.example/x.png) [click](http://evil.example) <http://evil.example>",
        "x` <img src=x onerror=y> `y",
        "a | b\n|---|---|\n| c | d |",
        "&#60;script&#62;",
        "1. a list",
        "- a list",
        "---",
        EVIL,
    ],
)
def test_markdown_stays_one_line_without_markup(text):
    tokens = MarkdownIt("commonmark").enable("table").parse(plain_text(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children or ()} <= {"text", "text_special"}
    (coded,) = (token for token in MarkdownIt("commonmark").parse(inline_code(text)) if token.type == "inline")
    assert [child.type for child in coded.children or ()] == ["code_inline"]


def test_a_fence_holds_any_text():
    text = "a\n```\n# Injected\n````\n<b>"
    (token,) = MarkdownIt("commonmark").parse(fenced("yaml", text))
    assert (token.type, token.content) == ("fence", f"{text}\n")
