"""Sweep files: what they mean, and that everything wrong with one is told at once."""

import copy
from typing import Any

import pytest

from wsmerge.errors import UsageError
from wsmerge.steering.sweep.reading import load_sweep, parse_sweep

FILES = {"validation": "v", "test": "t"}
GOOD: dict[str, Any] = {
    "base": "b",
    "methods": [{"weights": "sycophancy"}, {"system_prompt": {"plus": "a", "minus": "b"}}],
    "measures": {"agrees": {"role": "behaviour", "choice": FILES}},
}


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **fields}


def judged(judge: Any) -> dict[str, Any]:
    return {"measures": {"x": {"role": "behaviour", "answers": {**FILES, "score": {"judge": judge}}}}}


def test_a_judge_is_a_function_or_an_endpoint():
    for judge in (
        "module:function",
        {"function": "module:function"},
        {"base_url": "http://x/v1", "model": "j", "behaviour": "Is kind."},
        {"base_url": "http://x/v1", "model": "j", "prompt": "{question} {answer}"},
    ):
        score = parse_sweep(changed(**judged(judge))).measures["x"].model_dump(exclude_unset=True)["answers"]["score"]
        assert score == {"judge": judge}


def problems(fields: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse_sweep(fields, where="sweep.yaml")
    return "\n".join(caught.value.details)


def test_strengths_are_signed_and_at_equal_ratios():
    config = parse_sweep(changed(k={"from": 0.5, "to": 8, "points": 3}))
    assert config.strengths(config.methods[0]) == (-8.0, -2.0, -0.5, 0.5, 2.0, 8.0)
    assert config.strengths(config.methods[1]) == (-1.0, 1.0)  # a system prompt has no size
    plus = parse_sweep(changed(k={"from": 1, "to": 100, "points": 3, "signs": "plus"}))
    assert plus.strengths(plus.methods[0]) == (1.0, 10.0, 100.0)


def test_listed_strengths_are_sorted_and_a_method_may_have_its_own():
    config = parse_sweep(changed(k=[2, -1, 0, 2], methods=[{"weights": "a"}, {"adapter": "x", "k": [1]}]))
    assert [config.strengths(method) for method in config.methods] == [(-1.0, 2.0), (1.0,)]


def test_strengths_by_their_kl_are_to_be_found():
    activation = {"activation": {"pairs": "p", "choose_at": {"kl": 0.04}}, "k": [1]}
    config = parse_sweep(
        changed(k={"kl": [0.15, 0.01, 0.15], "signs": "minus"}, methods=[*GOOD["methods"], activation])
    )
    weights, prompt, layer = config.methods
    levels = config.levels(weights)
    assert levels is not None
    assert (levels.values, levels.factors, config.strengths(weights)) == ((0.01, 0.15), (-1.0,), ())
    assert (config.levels(prompt), config.strengths(prompt)) == (None, (-1.0, 1.0))
    assert (config.levels(layer), config.strengths(layer)) == (None, (1.0,))
    assert layer.activation is not None
    assert layer.activation.model_dump()["choose_at"] == {"kl": 0.04}
    for fields in ({"k": {"kl": [0.1]}}, {"methods": [activation]}):
        assert "write `controls: {draws: 0}`" in problems(changed(controls=False, **fields))
        assert parse_sweep(changed(controls={"draws": 0}, **fields)).controls is not None
    assert parse_sweep(changed(controls=False, k={"kl": [0.1]}, methods=GOOD["methods"][1:])).controls is None


def test_short_forms_and_names():
    config = parse_sweep(
        changed(
            methods=[
                {"weights": {"a": 1, "b": [0, 0.5]}},
                {"adapter": {"path": "minus/", "negated": True}},
                {"activation": {"pairs": "p", "layer": "all"}},
                {"activation": {"pairs": "p", "layer": 3}},
                {"activation": {"pairs": "p"}, "label": "chosen"},
                {"first_token": {"pairs": "q"}},
            ]
        )
    )
    names = ["a and b", "-minus/", "activations, all layers", "activations, layer 3", "chosen", "first token"]
    assert [method.name for method in config.methods] == names
    assert config.target == "agrees"
    assert config.pick.perplexity_rise == 5


def test_every_problem_is_told_with_the_key_that_was_meant():
    text = problems(
        {
            "bse": "x",
            "k": {"from": 1, "too": 3, "points": 2},
            "methods": [{"weight": "a"}, {"activation": {"pairs": "x", "layr": 3}}, {"adapter": "x", "weights": "q"}],
            "measures": {
                "pick": {"role": "behavior", "choice": {"validation": "a", "tst": "b"}},
                "words": {"role": "capability", "answers": {**FILES, "score": {"regex": "("}}},
                "both": {"role": "perplexity", "choice": FILES},
            },
            "pick": {"aim": "lower", "perplexity": 3},
        }
    )
    for line in (
        "bse: unknown key; did you mean 'base'?",
        "k.too: unknown key; did you mean 'to'?",
        "methods[0].weight: unknown key; did you mean 'weights'?",
        "methods[1].activation.layr: unknown key; did you mean 'layer'?",
        "methods[2]: give exactly one of weights, adapter, system_prompt, activation, first_token, not weights and adapter",
        "measures.pick.role: Input should be",
        "measures.pick.choice.tst: unknown key; did you mean 'test'?",
        "measures.words.answers.score.regex: no regular expression",
        "measures.both: role perplexity and a perplexity go together",
        "pick.aim: Input should be",
        "pick.perplexity: unknown key; did you mean 'perplexity_rise'?",
    ):
        assert line in text
    assert "missing key" not in text  # what is misspelt is not missing too


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"k": {"from": 3, "to": 1, "points": 2}}, "from must be below to"),
        ({"k": {"kl": [0.1], "sings": "plus"}}, "k.sings: unknown key; did you mean 'signs'?"),
        ({"k": {"kl": [0.1], "from": 1}}, "k.from: unknown key; the keys here are kl, signs"),
        ({"k": {"kl": []}}, "k.kl: is empty"),
        ({"methods": [{"first_token": {"pears": "p"}}]}, "first_token.pears: unknown key; did you mean 'pairs'?"),
        ({"k": {"kl": [0.1, 0]}}, "k.kl[1]: Input should be greater than 0"),
        ({"k": {"kl": 0.1}}, "k.kl: must be a list"),
        (
            {"methods": [{"activation": {"pairs": "p", "choose_at": {"k": 1}}}]},
            "methods[0].activation.choose_at.k: unknown key; did you mean 'kl'?",
        ),
        ({"methods": [{"activation": {"pairs": "p", "choose_at": -1}}]}, "choose_at: Input should be greater than 0"),
        ({"k": [0]}, "no strength other than 0"),
        ({"k": "many"}, "k: must be a list, not text"),
        ({"k": [float("nan")]}, "not finite"),
        ({"pick": {"measure": "agress"}}, "did you mean 'agrees'"),
        ({"pick": {"aim": "restore"}}, "restore is for a sweep with repair"),
        ({"methods": [{"weights": "a"}, {"weights": "a"}]}, "two are called 'a'"),
        ({"methods": [{"weights": "a", "label": "base"}]}, "'base' is the name"),
        ({"methods": []}, "methods: is empty"),
        ({"measures": {"x": {"role": "capability", "choice": {**FILES, "value": "margin"}}}}, "take the rate"),
        ({"measures": {"x": {"role": "capability", "choice": FILES}}}, "say which measure"),
        (
            {
                "measures": {
                    "x": {"role": "behaviour", "choice": {**FILES, "value": "margin"}},
                    "x rate": {"role": "capability", "choice": FILES},
                }
            },
            "'x rate' is also a figure of 'x'",
        ),
        (judged("x"), "score.judge: name a function as module:function"),
        (judged(["x:y"]), "score.judge: Input should be a valid string"),
        (judged({}), "score.judge: give function, or base_url and model"),
        (judged({"base_url": "http://x/v1"}), "score.judge: give the judge's model"),
        (judged({"base_url": "http://x/v1", "model": "j"}), "give the behaviour that the prompt asks for"),
        (judged({"base_url": "ftp://x", "modle": "j"}), "score.judge.modle: unknown key; did you mean 'model'?"),
        (judged({"base_url": "ftp://x", "model": "j", "timeout": 0}), "score.judge.timeout: Input should be greater"),
        ({"methods": [{"system_prompt": {"plus": "a", "minus": "b"}, "k": [1]}]}, "no strengths of its own"),
    ],
)
def test_what_does_not_go_together(fields, told):
    assert told in problems(changed(**fields))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        load_sweep(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="cannot read"):
        load_sweep(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(UsageError, match="must be a mapping"):
        load_sweep(tmp_path / "list.yaml")
