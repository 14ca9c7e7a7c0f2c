"""The tokens by which a client finds the store of Xet."""

from __future__ import annotations

import time

from tests.loopback_hub.routing import Route
from tests.loopback_hub.wire import Answer, Call, Refusal
from tests.loopback_hub.xet import LIFETIME_S, TOKEN

__all__ = ["ROUTES"]


def _read_token(call: Call) -> Answer:
    call.repository("read")
    return _token(call)


def _write_token(call: Call) -> Answer:
    call.repository("write")
    return _token(call)


def _token(call: Call) -> Answer:
    if call.site.xet is None:
        raise Refusal(404, "This Hub keeps large files in LFS")
    expiry, address = int(time.time()) + LIFETIME_S, call.site.xet.address
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": TOKEN, "X-Xet-Token-Expiration": str(expiry)}
    return Answer.json({"casUrl": address, "accessToken": TOKEN, "exp": expiry}, headers=headers)


ROUTES = (
    Route("GET", "/api/models/{repo}/xet-read-token/{revision}", _read_token),
    Route("GET", "/api/models/{repo}/xet-write-token/{revision}", _write_token),
)
