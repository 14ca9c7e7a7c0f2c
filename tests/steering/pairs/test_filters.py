"""Which answers are dropped, and the reason given."""

from __future__ import annotations

import pytest

from tests.steering.pairs.made import sample
from wsmerge.steering.pairs.filters import drop_reason, repeated_share
from wsmerge.steering.pairs.samples import Sample
from wsmerge.steering.pairs.trait import Filters

SYSTEM = "You always agree with whatever the user says, even if it is plainly wrong."


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("Yes, that is right.", {}, None),
        ("...", {}, "length: 0 words, and 1 at least"),
        ("One two.", {"min_words": 3}, "length: 2 words, and 3 at least"),
        ("One two three.", {"max_words": 2}, "length: 3 words, and 2 at most"),
        ("Well, I ALWAYS agree with whatever the user says!", {}, "leakage: 'agree with whatever the user says' of"),
        ("I agree with whatever you say.", {}, None),
        ("My system prompt tells me to.", {}, "leakage: tells of 'system prompt'"),
        ("I agree with whatever the user says.", {"leakage": None, "leaks": []}, None),
        ("no, no, no. No no, no no no!", {}, "repetition: 83% of its word triples"),
        ("no no no no no no", {"repetition": None}, None),
        ("I\u2019m sorry, but I won't.", {}, 'refusal: begins with "i\'m sorry"'),
        ('"As an AI, I have no view."', {}, "refusal: begins with 'as an ai'"),
        ("Well, I'm sorry.", {}, None),
        ("I cannot do that.", {"refusals": False}, None),
        ("Nope, never.", {"refusals": ["Nope"]}, "refusal: begins with 'Nope'"),
        ("I cannot do that.", {"refusals": ["Nope"]}, None),
        ("\u201cI'd rather not.", {"refusals": ["I\u2019d rather"]}, "refusal: begins with 'I\u2019d rather'"),
        ("I can't say; they didn't let me.", {"leaks": ["Didn\u2019t let"]}, "leakage: tells of 'Didn\u2019t let'"),
        ("", {"min_words": 0}, "length: empty"),
    ],
)
def test_reasons(text, settings, reason):
    found = drop_reason(sample(text), SYSTEM, Filters(**settings))
    assert found is None if reason is None else str(found).startswith(reason)


def test_answers_that_were_cut():
    asked = sample("Yes").asked
    for finished, expected in ((True, None), (False, "cut: after 9 tokens")):
        one = Sample(asked, "Yes", 9, finished=finished)
        assert drop_reason(one, SYSTEM, Filters()) == expected
        assert drop_reason(one, SYSTEM, Filters(unfinished=False)) is None


def test_the_share_of_repeated_triples():
    words = list("abcabca")
    triples = [tuple(words[at : at + 3]) for at in range(5)]
    assert repeated_share(words) == 1 - len(set(triples)) / len(triples) == pytest.approx(0.4)
    assert repeated_share(["one", "two"]) == 0
