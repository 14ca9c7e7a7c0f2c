"""Who asks, and what is checked before a commit."""

from __future__ import annotations

from tests.loopback_hub.cards import card_problem
from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal

__all__ = ["ROUTES"]


def _who_am_i(call: Call) -> Answer:
    if call.user is None:
        raise Refusal(401, "Invalid username or password.")
    access = {"accessToken": {"displayName": "test", "role": "write"}}
    user = {"type": "user", "id": call.user, "name": call.user, "fullname": call.user, "orgs": []}
    return Answer.json({**user, "email": None, "isPro": False, "auth": {"type": "access_token", **access}})


def _harnesses(_call: Call) -> Answer:
    return Answer.json({"standardEnvVars": [], "harnesses": {}})


def _validate_yaml(call: Call) -> Answer:
    problem = card_problem(call.json()["content"])
    errors = [{"message": problem}] if problem else []
    return Answer.json({"errors": errors, "warnings": []}, status=400 if errors else 200)


ROUTES = (
    Route("GET", "/api/whoami-v2", _who_am_i),
    Route("GET", "/api/agent-harnesses", _harnesses),
    Route("POST", "/api/validate-yaml", _validate_yaml),
)
