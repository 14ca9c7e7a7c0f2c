"""What every registry must do, as checks that anybody can run on theirs. Needs pytest.

    from wsmerge.registry.testing import RegistryConformance

    class TestMine(RegistryConformance):
        def make(self, folder):
            return MyRegistry(folder)

        def again(self, registry):
            return MyRegistry(registry.folder)

pytest collects the checks as methods of `TestMine`. A registry that does less says so by `supports_...`, and the checks of
that are skipped. `damage` changes a stored byte; without it, the checks of damage are skipped. `CrashConformance` adds
those of a crash at every request, and `ObjectsConformance` holds a store of objects to what a registry needs of it.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("concurrency", "crashes", "naming", "objects", "publishing", "upkeep"))
)

from wsmerge.registry.testing.conformance import CrashConformance, RegistryConformance  # noqa: E402 - rewritten first
from wsmerge.registry.testing.faults import CrashError, DyingObjects  # noqa: E402 - rewritten first
from wsmerge.registry.testing.objects import ObjectsConformance  # noqa: E402 - rewritten first
from wsmerge.registry.testing.samples import SampleDirection, sample_artifact, sample_direction  # noqa: E402

__all__ = [
    "CrashConformance",
    "CrashError",
    "DyingObjects",
    "ObjectsConformance",
    "RegistryConformance",
    "SampleDirection",
    "sample_artifact",
    "sample_direction",
]
