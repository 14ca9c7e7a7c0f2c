"""The tiny models, made once a session."""

from __future__ import annotations

import pytest

from tests.mergekit.models import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Models by what they are."""
    return Zoo(tmp_path_factory.mktemp("zoo"))
