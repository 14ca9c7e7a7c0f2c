"""A judge: who tells how far an answer shows a behaviour, from 0 to 100. An endpoint, or a function of the user's.

    def judge(question: str, answer: str) -> float: ...

The endpoint speaks OpenAI's chat completions: `POST BASE_URL/chat/completions` with `model`, `messages` and
`temperature: 0`; the one number of the reply, from 0 to 100, is the score. A request that fails in a way that may pass (no
connection, no answer in time, 408, 409, 429, 5xx) is made again, after 0.5, 1, 2 ... seconds or what the endpoint asks for.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from wsmerge.core.opening import parse_json
from wsmerge.errors import JudgeError, UsageError
from wsmerge.steering.judging.config import JudgeSettings
from wsmerge.steering.named import NOTHING, Allowed, function_named

__all__ = ["KEY_HOSTS", "Judge", "check_key", "make_judge", "naming"]

Judge: TypeAlias = Callable[[str, str], float | None]
"""From question and answer to a score, or to None where the reply has none."""

KEY_HOSTS: Final[Mapping[str, str | None]] = {
    "JUDGE_KEY": None,
    "WSMERGE_JUDGE_KEY": None,
    "ANTHROPIC_API_KEY": "api.anthropic.com",
    "DEEPSEEK_API_KEY": "api.deepseek.com",
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "GROQ_API_KEY": "api.groq.com",
    "HF_TOKEN": "router.huggingface.co",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "OPENAI_API_KEY": "api.openai.com",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "TOGETHER_API_KEY": "api.together.xyz",
    "XAI_API_KEY": "api.x.ai",
}
"""Variables that a file may name without `--key-env`, and the one host that each key is for; None for any judge."""

_PASSING: Final = frozenset({408, 409, 429, *range(500, 600)})
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 60.0
_MOST_BYTES: Final = 1 << 20
_PART_BYTES: Final = 1 << 16
_SHOWN_CHARACTERS: Final = 200
_OF_HUNDRED: Final = re.compile(r"(?:/|\bout of|\bof)\s*100\b")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")


def make_judge(config: JudgeSettings, behaviour: str, allowed: Allowed = NOTHING) -> Judge:
    """Make the judge that `config` describes; a key that `check_key` refuses is not sent.

    Raises:
        UsageError: no such function or none that is allowed, or the variable with the key is not set.
    """
    if config.function is not None:
        return _calling(config.function, allowed)
    key = ""
    if config.key_env is not None and _key_refusal(config, allowed) is None:
        key = os.environ.get(config.key_env, "").strip()
        if not key:
            raise UsageError(
                f"{config.key_env} is not set, which the judge's key is in", hint=f"export {config.key_env}=..."
            )
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"{config.key_env} holds letters that no key has, such as an end of line or an ellipsis",
                hint=f"export {config.key_env} again, with the key alone",
            )
    return _Endpoint(config, behaviour, key)


def check_key(config: JudgeSettings, allowed: Allowed = NOTHING) -> None:
    """Refuse a key that the address of the file may not have.

    Raises:
        UsageError: a variable that is for another host or for no judge and was not allowed; or plain http to another
            machine, whatever is allowed.
    """
    refusal = _key_refusal(config, allowed)
    if refusal is not None:
        raise refusal


def _key_refusal(config: JudgeSettings, allowed: Allowed) -> UsageError | None:
    if config.key_env is None:
        return None
    name, url = config.key_env, urlsplit(config.base_url or "")
    host = url.hostname or ""
    if url.scheme != "https" and not _is_loopback(host):
        return UsageError(
            f"the key in {name} is not sent over plain http to {host}", where="key_env", hint="give an https address"
        )
    if name in allowed.keys or (name in KEY_HOSTS and KEY_HOSTS[name] in (None, host)):
        return None
    return UsageError(
        f"the file asks to send the variable {name} to {host}, which is not allowed",
        where="key_env",
        hint=f"if it is that judge's key, allow it with --key-env {name}",
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _Endpoint:
    """Asks an endpoint for each score."""

    def __init__(self, config: JudgeSettings, behaviour: str, key: str) -> None:
        self._config = config
        self._behaviour = behaviour
        self._url = f"{(config.base_url or '').rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A redirect would take the key to another host, and so would a proxy on the way to this very machine.
        here = _is_loopback(urlsplit(self._url).hostname or "")
        self._opener = urllib.request.build_opener(_NoRedirects, *([urllib.request.ProxyHandler({})] if here else []))

    def __call__(self, question: str, answer: str) -> float | None:
        values = {"behaviour": self._behaviour, "question": question, "answer": answer}
        # One pass, so that braces in an answer stay what they are.
        prompt = re.sub(r"\{(behaviour|question|answer)\}", lambda found: values[found[1]], self._config.prompt)
        message = {"role": "user", "content": prompt}
        body = {"model": self._config.model, "messages": [message], "temperature": 0}
        return _score(self._content(json.dumps(body).encode()))

    def _content(self, body: bytes) -> str:
        reply = self._reply(body)
        try:
            content = parse_json(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise JudgeError(f"answers what is no chat completion: {_shown(reply)}", where=self._url) from error
        return content if isinstance(content, str) else ""

    def _reply(self, body: bytes) -> bytes:
        """Return the reply to a request, which is made again while what is wrong may pass."""
        attempt = 0
        while True:
            wait: float | None = None
            try:
                return self._ask(body)
            except _RefusedError as error:
                if error.status not in _PASSING or attempt >= self._config.retries:
                    raise JudgeError(f"answers {error.status}: {_shown(error.reply)}", where=self._url) from error
                wait = error.wait
            except (OSError, http.client.HTTPException) as error:
                if attempt >= self._config.retries:
                    raise JudgeError(f"cannot be reached: {error or type(error).__name__}", where=self._url) from error
            time.sleep(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt if wait is None else wait))
            attempt += 1

    def _ask(self, body: bytes) -> bytes:
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")  # noqa: S310 - the settings allow http and https alone
        end = time.monotonic() + self._config.timeout
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                return _read(response, end)
        except urllib.error.HTTPError as error:
            with error:
                wait = _asked_wait(error.headers.get("Retry-After"))
                raise _RefusedError(error.code, _read(error, end), wait) from error


class _RefusedError(Exception):
    """A reply that is no success: its status, its body, and the seconds to wait that it asks for."""

    def __init__(self, status: int, reply: bytes, wait: float | None) -> None:
        super().__init__(status)
        self.status = status
        self.reply = reply
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the failure that it is here."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - urllib's arguments, none of them used
        return None


@contextmanager
def naming(where: str, hint: str | None = None) -> Iterator[None]:
    """Turn whatever a function of the user's raises into an error that names it.

    Raises:
        JudgeError: it failed.
    """
    try:
        yield
    except Exception as error:
        raise JudgeError(f"failed: {type(error).__name__}: {error}", where=where, hint=hint) from error


def _calling(name: str, allowed: Allowed) -> Judge:
    function = function_named(name, allowed)

    def judge(question: str, answer: str) -> float | None:
        with naming(name):
            score = function(question, answer)
        if isinstance(score, int | float) and math.isfinite(score):
            return float(score)
        raise JudgeError(f"gave {score!r}, which is no number", where=name)

    return judge


def _read(response: Any, end: float) -> bytes:  # noqa: ANN401 - a response or an HTTPError, which share no type that has read1
    """Return the body, or its beginning; a socket's own timeout starts anew with every byte that comes."""
    body = bytearray()
    while len(body) < _MOST_BYTES and (part := response.read1(_PART_BYTES)):
        body += part
        if time.monotonic() > end:
            raise TimeoutError("timed out")
    if response.length and len(body) < _MOST_BYTES:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


def _score(content: str) -> float | None:
    """Return the number that a reply has; None where it has none from 0 to 100, or several."""
    numbers = {float(found) for found in _NUMBER.findall(_OF_HUNDRED.sub("", content))}
    score = numbers.pop() if len(numbers) == 1 else -1.0
    return score if 0 <= score <= 100 else None


def _asked_wait(text: str | None) -> float | None:
    """Return the seconds of a `Retry-After`; None where it has none."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _shown(reply: bytes) -> str:
    text = " ".join(reply.decode("utf-8", errors="replace").split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
