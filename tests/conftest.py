"""Settings for all tests: an empty home, no network, Hypothesis without deadlines."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The first example of a test may compile a kernel, which says nothing about the code.
settings.register_profile("wsmerge", deadline=None, print_blob=True)
settings.load_profile("wsmerge")

# A shell starts background jobs with Ctrl-C ignored, which the processes of these tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's store, cache or Hub, and none reaches the network."""
    home: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("WSMERGE_HOME", str(home / "wsmerge"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
