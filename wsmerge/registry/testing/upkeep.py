"""Checks of `verify` and `gc`: damage is noticed, and nothing that is used is taken away."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final

import pytest

from wsmerge.errors import VerificationError
from wsmerge.registry.direction import verify_direction
from wsmerge.registry.registry import Registry
from wsmerge.registry.testing.harness import Harness
from wsmerge.registry.testing.samples import sample_artifact

__all__ = ["UpkeepChecks"]

# A minute ahead, so that what was written just now is old.
_OLD_BY_NOW: Final = -60.0


class UpkeepChecks(Harness):
    """`verify` names what is damaged, `gc` takes what nothing uses."""

    def test_all_is_well_after_publishing(self, registry: Registry, tmp_path: Path) -> None:
        """Every version is looked at, or the one that is asked for."""
        first, second = self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        report = self.again(registry).verify()
        assert (report.versions, report.problems) == ((first.label, second.label), ())
        report.raise_if_bad()
        assert registry.verify(f"{self.name}@1.0.0").versions == (first.label,)

    @pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "direction.json"])
    def test_a_changed_byte_is_noticed(self, registry: Registry, tmp_path: Path, file: str) -> None:
        """In the version that has it, and in no other, unless the two share the file."""
        bad, good = self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        self.damage(registry, bad, file)
        report = self.again(registry).verify()
        assert report.versions == (bad.label, good.label)
        named = {problem.partition(": ")[0] for problem in report.problems}
        assert named in ({bad.label}, {bad.label, good.label} if file == "adapter_config.json" else {bad.label})
        with pytest.raises(VerificationError):
            report.raise_if_bad()
        assert bool(registry.verify(good.label).problems) == (good.label in named)
        assert [entry.label for entry in registry.survey().entries if entry.label != bad.label] == [good.label]

    def test_a_changed_factor_is_noticed_when_it_is_read(self, registry: Registry, source: Path) -> None:
        """The last byte belongs to a factor, which is hashed on its first reading."""
        entry = self.publish(registry, source)
        self.damage(registry, entry, "adapter_model.safetensors")
        with registry.open(entry.label) as direction, pytest.raises(VerificationError):
            deque(map(direction.delta, direction.shapes), maxlen=0)

    def test_a_damaged_version_can_be_removed(self, registry: Registry, tmp_path: Path) -> None:
        """So that the others can be listed again."""
        self.need(of=self.supports_remove, what="removing")
        bad, good = self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        self.damage(registry, bad, "direction.json")
        assert [broken.label for broken in registry.survey().broken] == [bad.label]
        registry.remove(bad.label)
        assert [entry.label for entry in registry.list()] == [good.label]

    def test_gc_takes_nothing_that_is_used(self, registry: Registry, tmp_path: Path) -> None:
        """Two versions with the same tensors, and another: all stay whole."""
        self.need(of=self.supports_gc, what="gc")
        self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        self.publish(registry, sample_artifact(tmp_path / "same", "1.2.0", seed=1))
        report = registry.gc(dry_run=False, min_age_s=_OLD_BY_NOW)
        assert (report.removed_versions, report.temporaries, report.freed_bytes) == (0, 0, 0)
        assert len(registry.verify().versions) == 3
        assert registry.verify().problems == ()

    def test_gc_frees_what_was_removed_and_first_only_says_so(self, registry: Registry, tmp_path: Path) -> None:
        """What a removed version shares with others stays."""
        self.need(of=self.supports_gc and self.supports_remove, what="gc of removed versions")
        self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        self.publish(registry, sample_artifact(tmp_path / "same", "1.2.0", seed=1))
        registry.remove(f"{self.name}@1.0.0")
        registry.remove(f"{self.name}@1.1.0")
        counted = registry.gc(min_age_s=_OLD_BY_NOW)
        done = registry.gc(dry_run=False, min_age_s=_OLD_BY_NOW)
        payload_bytes = (tmp_path / "1.1.0" / "adapter_model.safetensors").stat().st_size
        assert (counted.dry_run, done.dry_run) == (True, False)
        assert (counted.blobs, counted.freed_bytes) == (done.blobs, done.freed_bytes)
        assert payload_bytes <= done.freed_bytes < 2 * payload_bytes + 20_000
        assert registry.gc(min_age_s=_OLD_BY_NOW).freed_bytes == 0
        with registry.open(self.name) as direction:
            assert direction.label == f"{self.name}@1.2.0"
            assert verify_direction(direction) == ()
        assert str(registry.next_version(self.name)) == "1.2.1"
