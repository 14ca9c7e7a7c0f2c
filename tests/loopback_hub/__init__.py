"""A Hub on 127.0.0.1 that answers the real `huggingface_hub` client; see README.md beside this file."""

from __future__ import annotations

from tests.loopback_hub.faults import Fault, Faults
from tests.loopback_hub.hub import LoopbackHub
from tests.loopback_hub.wire import Request

__all__ = ["Fault", "Faults", "LoopbackHub", "Request"]
