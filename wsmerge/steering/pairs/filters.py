"""Which answers are dropped before a judge sees them, and the reason for each, in one word and a few more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from wsmerge.steering.pairs.samples import Sample
from wsmerge.steering.pairs.trait import Filters

__all__ = ["REFUSALS", "drop_reason", "repeated_share"]

REFUSALS: Final = (
    "i can't",
    "i cannot",
    "i can not",
    "i'm sorry",
    "i am sorry",
    "sorry, but",
    "sorry, i",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i won't",
    "as an ai",
    "as a language model",
)
"""How refusals begin, in lower case."""

_WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_BEFORE_WORDS: Final = " \n\"'*\u2018\u201c"


def drop_reason(sample: Sample, system: str, filters: Filters) -> str | None:
    """Return why a sample is dropped, beginning with the filter's name; None where it is kept.

    Args:
        sample: the answer.
        system: the system prompt that it was given under.
        filters: settings.
    """
    words = _words(sample.text)
    checks = (_cut, _length, _leakage, _repetition, _refusal)
    reasons = (check(sample, words, system, filters) for check in checks)
    return next((reason for reason in reasons if reason is not None), None)


def repeated_share(words: Sequence[str]) -> float:
    """Return the share of word triples that stood in the text before: 0 for none, near 1 for a phrase over and over."""
    triples = list(_runs(words, 3))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _cut(sample: Sample, _: Sequence[str], __: str, filters: Filters) -> str | None:
    return f"cut: after {sample.tokens} tokens" if filters.unfinished and not sample.finished else None


def _length(sample: Sample, words: Sequence[str], _: str, filters: Filters) -> str | None:
    if not sample.text:
        return "length: empty"
    if len(words) < filters.min_words:
        return f"length: {len(words)} words, and {filters.min_words} at least"
    if filters.max_words is not None and len(words) > filters.max_words:
        return f"length: {len(words)} words, and {filters.max_words} at most"
    return None


def _leakage(sample: Sample, words: Sequence[str], system: str, filters: Filters) -> str | None:
    text = _plain(sample.text)
    told = next((phrase for phrase in filters.leaks if _plain(phrase) in text), None)
    if told is not None:
        return f"leakage: tells of {told!r}"
    if filters.leakage is None:
        return None
    shared = set(_runs(words, filters.leakage)) & set(_runs(_words(system), filters.leakage))
    return f"leakage: {' '.join(min(shared))!r} of the system prompt" if shared else None


def _repetition(_: Sample, words: Sequence[str], __: str, filters: Filters) -> str | None:
    share = repeated_share(words)
    if filters.repetition is None or share <= filters.repetition:
        return None
    return f"repetition: {share:.0%} of its word triples stood in it before"


def _refusal(sample: Sample, _: Sequence[str], __: str, filters: Filters) -> str | None:
    beginnings = REFUSALS if filters.refusals is True else filters.refusals or ()
    text = _plain(sample.text).lstrip(_BEFORE_WORDS)
    found = next((beginning for beginning in beginnings if text.startswith(_plain(beginning))), None)
    return f"refusal: begins with {found!r}" if found else None


def _words(text: str) -> list[str]:
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    """Lower case, with one kind of apostrophe."""
    return text.lower().replace("\u2019", "'")


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))
