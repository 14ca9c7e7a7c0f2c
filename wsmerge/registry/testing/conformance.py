"""The checks of a registry, put together."""

from __future__ import annotations

from wsmerge.registry.testing.concurrency import ConcurrencyChecks
from wsmerge.registry.testing.crashes import CrashChecks
from wsmerge.registry.testing.naming import NamingChecks
from wsmerge.registry.testing.publishing import PublishingChecks
from wsmerge.registry.testing.upkeep import UpkeepChecks

__all__ = ["CrashConformance", "RegistryConformance"]


class RegistryConformance(PublishingChecks, NamingChecks, ConcurrencyChecks, UpkeepChecks):
    """All that holds for every registry: `make` and `again` are to be written, `damage` may be."""


class CrashConformance(CrashChecks):
    """What holds after a crash: `make`, `again` and `dying` are to be written."""
