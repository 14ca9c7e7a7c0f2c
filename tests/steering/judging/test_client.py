"""The judge that settings describe: an endpoint on this machine, or a function."""

from __future__ import annotations

import json
import socket
import time

import pytest
from pydantic import ValidationError

from tests.steering.judging.loopback import endpoint, scored
from wsmerge.errors import JudgeError, UsageError
from wsmerge.steering.judging.client import check_key, make_judge
from wsmerge.steering.judging.config import JudgeSettings
from wsmerge.steering.named import Allowed

HERE = "tests.steering.pairs.judging"


def config(url: str, **changed) -> JudgeSettings:
    return JudgeSettings.model_validate({"base_url": url, "model": "j", "workers": 1, **changed})


@pytest.fixture
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr("wsmerge.steering.judging.client._FIRST_WAIT_S", 0.01)


def test_what_the_endpoint_is_asked(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with endpoint(lambda _, __: (200, scored("85"))) as place:
        judge = make_judge(config(place.url + "/", key_env="JUDGE_KEY"), "agrees {question}")
        assert judge("How {answer}?", "So {question}") == 85
    [asked], [headers] = place.asked, place.headers
    assert (asked["model"], asked["temperature"]) == ("j", 0)
    [message] = asked["messages"]
    assert message["role"] == "user"
    for text in ("Behaviour: agrees {question}\n", "How {answer}?", "So {question}"):
        assert text in message["content"]
    assert headers["path"] == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        (" 0 ", 0),
        ("Score: 42.5.", 42.5),
        ("85/100", 85),
        ("I give it 7 out of 100", 7),
        ("90, that is 90", 90),
        ("between 10 and 20", None),
        ("101", None),
        ("-5", None),
        ("fully", None),
        ("", None),
    ],
)
def test_the_score_of_a_reply(reply, score):
    with endpoint(lambda _, __: (200, scored(reply))) as place:
        assert make_judge(config(place.url), "b")("q", "a") == score


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_asked_again(status):
    with endpoint(lambda number, _: (status if number < 2 else 200, scored("30"))) as place:
        assert make_judge(config(place.url, retries=2), "b")("q", "a") == 30
        assert len(place.asked) == 3
        place.more["Retry-After"] = "0"
        place.asked.clear()
        with pytest.raises(JudgeError, match=f"answers {status}"):
            make_judge(config(place.url, retries=1), "b")("q", "a")
        assert len(place.asked) == 2


@pytest.mark.parametrize(("status", "told"), [(401, "answers 401"), (302, "answers 302"), (404, "no such model")])
def test_what_will_not_pass_is_not_asked_again(status, told):
    with endpoint(lambda _, __: (status, {"error": "no such model"})) as place:
        place.more["Location"] = place.url
        with pytest.raises(JudgeError, match=told) as caught:
            make_judge(config(place.url), "b")("q", "a")
        assert len(place.asked) == 1
    assert caught.value.where == f"{place.url}/chat/completions"


@pytest.mark.parametrize("value", [{}, {"choices": []}, [], "words"])
def test_an_answer_that_is_no_chat_completion(value):
    with endpoint(lambda _, __: (200, value)) as place, pytest.raises(JudgeError, match="no chat completion"):
        make_judge(config(place.url), "b")("q", "a")


@pytest.mark.usefixtures("_no_waiting")
def test_an_endpoint_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        judge = make_judge(config(f"http://127.0.0.1:{free.getsockname()[1]}", retries=1), "b")
        with pytest.raises(JudgeError, match="cannot be reached"):
            judge("q", "a")


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_that_comes_byte_by_byte_is_given_up_in_time(status):
    reply = scored("60" + " " * 2000)
    with endpoint(lambda _, __: (status, reply)) as place:
        place.drip_s = 0.05  # between two bytes: never long enough for the socket's own timeout
        whole = len(json.dumps(reply)) * place.drip_s
        start = time.monotonic()
        with pytest.raises(JudgeError, match="timed out"):
            make_judge(config(place.url, timeout=0.2, retries=0), "b")("q", "a")
        assert time.monotonic() - start < whole / 2


@pytest.mark.usefixtures("_no_waiting")
def test_a_reply_that_is_cut_is_asked_for_again():
    with endpoint(lambda _, __: (200, scored("60"))) as place:

        def whole_later(number: int, _body: object) -> tuple[int, object]:
            place.cut = 9 if number == 0 else 0
            return 200, scored("60")

        place.answer = whole_later
        assert make_judge(config(place.url), "b")("q", "a") == 60
        assert len(place.asked) == 2


ALLOWED = Allowed(code=frozenset({HERE, "no_such_module_here"}))


def test_a_function_scores():
    assert make_judge(JudgeSettings(function=f"{HERE}:by_length"), "b", ALLOWED)("q", "abc") == 3


@pytest.mark.parametrize("name", [f"{HERE}:nowhere", "no_such_module_here:x", f"{HERE}:NUMBER"])
def test_functions_that_are_not_there(name):
    with pytest.raises(UsageError, match=r"cannot be loaded|is no function"):
        make_judge(JudgeSettings(function=name), "b", ALLOWED)


@pytest.mark.parametrize("name", ["shutil:rmtree", f"{HERE}.more:by_length", "tests:x"])
def test_functions_of_a_module_that_is_not_allowed_are_not_even_imported(name, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda _: pytest.fail("imported"))
    with pytest.raises(UsageError, match="not allowed") as caught:
        make_judge(JudgeSettings(function=name), "b", ALLOWED)
    assert f"--allow-code {name.partition(':')[0]}" in str(caught.value.hint)


def test_a_key_that_is_not_set(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UsageError, match="JUDGE_KEY is not set"):
        make_judge(config("http://127.0.0.1:1", key_env="JUDGE_KEY"), "b")


@pytest.mark.parametrize(
    ("name", "url", "keys"),
    [
        ("JUDGE_KEY", "https://judges.example/v1", ()),
        ("WSMERGE_JUDGE_KEY", "http://localhost:8000", ()),
        ("JUDGE_KEY", "http://[::1]:8000/v1", ()),
        ("OPENAI_API_KEY", "https://api.openai.com/v1", ()),
        ("HF_TOKEN", "https://router.huggingface.co/v1", ()),
        ("MINE", "https://judges.example/v1", ("MINE",)),
        ("OPENAI_API_KEY", "http://127.0.0.2:8000/v1", ("OPENAI_API_KEY",)),
    ],
)
def test_keys_that_a_file_may_send(name, url, keys):
    check_key(config(url, key_env=name), Allowed(keys=frozenset(keys)))


@pytest.mark.parametrize(
    ("name", "url", "keys"),
    [
        ("HOME", "https://judges.example/v1", ()),
        ("AWS_SECRET_ACCESS_KEY", "http://127.0.0.1:8000", ()),
        ("HF_TOKEN", "http://127.0.0.1:8000", ()),
        ("OPENAI_API_KEY", "https://judges.example/v1", ()),
        ("OPENAI_API_KEY", "https://api.openai.com.judges.example/v1", ()),
        ("OPENAI_API_KEY", "http://api.openai.com/v1", ()),
        ("JUDGE_KEY", "http://judges.example/v1", ("JUDGE_KEY",)),
        ("JUDGE_KEY", "http://127.0.0.1.judges.example/v1", ("JUDGE_KEY",)),
        ("MINE", "https://judges.example/v1", ("OTHER",)),
    ],
)
def test_keys_that_a_file_may_not_send(name, url, keys):
    with pytest.raises(UsageError, match=r"not allowed|plain http"):
        check_key(config(url, key_env=name), Allowed(keys=frozenset(keys)))


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com@judges.example/v1",
        "https://judges.example#@api.openai.com/v1",
        "https://judges.example\\@api.openai.com/v1",
        "https://judges.example?api.openai.com/v1",
        "https:///v1",
    ],
)
def test_addresses_whose_host_is_a_matter_of_opinion(url):
    with pytest.raises(ValidationError, match="base_url"):
        config(url, key_env="OPENAI_API_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "http://[x",
        "http://a:b",
        "http://a:99999",
        "http://h/\u00e9",
        "http://\u00e9",
        f"http://{'a' * 70}.b",
        "http://a\x7f",
    ],
)
def test_addresses_that_cannot_be_asked(url):
    with pytest.raises(ValidationError, match="base_url"):
        config(url)


@pytest.mark.parametrize("timeout", [0, 1e300, float("inf"), float("nan")])
def test_times_that_no_socket_waits(timeout):
    with pytest.raises(ValidationError, match="timeout"):
        config("http://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("key", ["sk-1\n2", "sk-\u2026", "sk-\x01"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UsageError, match="JUDGE_KEY holds letters that no key has") as caught:
        make_judge(config("http://127.0.0.1:1", key_env="JUDGE_KEY"), "b")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_key_goes_where_it_is_allowed_and_through_no_proxy(monkeypatch, allowed):
    monkeypatch.setenv("MINE", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with endpoint(lambda _, __: (200, scored("1"))) as place:
        judge = make_judge(config(place.url, key_env="MINE"), "b", Allowed(keys=frozenset({"MINE"} if allowed else ())))
        judge("q", "a")
    assert [headers.get("Authorization") for headers in place.headers] == ["Bearer secret" if allowed else None]
