"""Checks of versions, aliases and removals: what a reference means, and what the log remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsmerge.errors import BadReferenceError, ConflictError, NotFoundError, UsageError
from wsmerge.registry.registry import Registry
from wsmerge.registry.testing.harness import Harness
from wsmerge.registry.testing.samples import sample_artifact

__all__ = ["NamingChecks"]


class NamingChecks(Harness):
    """Versions have semver's order, aliases move, and what was removed stays removed."""

    def test_versions_are_in_order(self, registry: Registry, tmp_path: Path) -> None:
        """By semver's rules, in whatever order they were published; the next one follows the highest."""
        self.publish_all(registry, tmp_path, ("1.10.0", "1.9.0", "2.0.0-rc.10", "2.0.0-rc.2", "1.0.0"))
        expected = ["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.2", "2.0.0-rc.10"]
        assert [str(entry.version) for entry in registry.versions(self.name)] == expected
        assert [str(version) for version in registry.version_numbers(self.name)] == expected
        assert str(registry.next_version(self.name)) == "2.0.0"

    def test_latest_is_the_highest_release(self, registry: Registry, tmp_path: Path) -> None:
        """A pre-release only where there is no release."""
        self.publish_all(registry, tmp_path, ("1.0.0-rc.2", "1.0.0-rc.1"))
        assert str(registry.resolve(self.name).version) == "1.0.0-rc.2"
        self.publish_all(registry, tmp_path / "more", ("0.9.0", "0.8.0"))
        assert str(registry.resolve(self.name).version) == "0.9.0"
        assert str(registry.resolve(f"{self.name}@latest").version) == "0.9.0"
        assert "latest" in registry.resolve(self.name).aliases

    def test_aliases_move_and_the_log_remembers(self, registry: Registry, tmp_path: Path) -> None:
        """Set by publishing and by `tag`, dropped by `untag`; what changes nothing is no event."""
        self.need(of=self.supports_aliases, what="aliases")
        first = sample_artifact(tmp_path / "1", "1.0.0")
        second = sample_artifact(tmp_path / "2", "1.1.0", seed=2)
        self.publish(registry, first, ("good",))
        self.publish(registry, second, ("good",))
        self.publish(registry, second, ("good",))
        assert str(registry.resolve(f"{self.name}@good").version) == "1.1.0"
        tagged = registry.tag(self.name, "best", "good")
        assert (str(tagged.version), tagged.aliases) == ("1.1.0", ("best", "good", "latest"))
        registry.untag(self.name, "good")
        other = self.again(registry)
        with pytest.raises(NotFoundError):
            other.resolve(f"{self.name}@good")
        with pytest.raises(NotFoundError):
            other.untag(self.name, "good")
        assert str(other.resolve(f"{self.name}@best").version) == "1.1.0"
        if self.supports_log:
            assert [(event.action, event.version, event.alias) for event in other.log(self.name)] == [
                ("publish", "1.0.0", ""),
                ("tag", "1.0.0", "good"),
                ("publish", "1.1.0", ""),
                ("tag", "1.1.0", "good"),
                ("tag", "1.1.0", "best"),
                ("untag", "1.1.0", "good"),
            ]

    def test_latest_can_be_pinned(self, registry: Registry, tmp_path: Path) -> None:
        """`latest` is an alias: where it was moved, the bare name means that until it is dropped."""
        self.need(of=self.supports_aliases, what="aliases")
        self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        registry.tag(self.name, "latest", "1.0.0")
        self.publish(registry, sample_artifact(tmp_path / "3", "2.0.0", seed=3))
        assert str(registry.resolve(self.name).version) == "1.0.0"
        registry.untag(self.name, "latest")
        assert str(registry.resolve(self.name).version) == "2.0.0"

    def test_an_alias_of_nothing_is_refused(self, registry: Registry, source: Path) -> None:
        """There is no such version or alias, or the alias may not be called that."""
        self.need(of=self.supports_aliases, what="aliases")
        entry = self.publish(registry, source)
        for target in ("1.0.1", "nothing", "sha256:000000000000"):
            with pytest.raises(NotFoundError):
                registry.tag(self.name, "good", target)
        with pytest.raises(BadReferenceError):
            registry.tag(self.name, "1.0.0", "1.0.0")
        assert registry.tag(self.name, "good", f"sha256:{entry.version_digest[:12]}").aliases == ("good", "latest")

    def test_a_removed_version_is_gone_for_good(self, registry: Registry, tmp_path: Path) -> None:
        """With its aliases; its number is never used again, be it for the same content."""
        self.need(of=self.supports_remove, what="removing")
        first, second = self.publish_all(registry, tmp_path, ("1.0.0", "1.1.0"))
        if self.supports_aliases:
            registry.tag(self.name, "good", "1.1.0")
            registry.tag(self.name, "fine", "1.0.0")
        removed = registry.remove(f"{self.name}@sha256:{second.version_digest[:12]}")
        assert (removed.action, removed.version, removed.version_digest) == ("remove", "1.1.0", second.version_digest)
        other = self.again(registry)
        assert [entry.label for entry in other.list()] == [first.label]
        for selector in ("1.1.0", "good", f"sha256:{second.version_digest}"):
            with pytest.raises(NotFoundError):
                other.resolve(f"{self.name}@{selector}")
        with pytest.raises(NotFoundError):
            other.remove(f"{self.name}@1.1.0")
        for seed in (2, 3):
            with pytest.raises(ConflictError, match="removed"):
                self.publish(other, sample_artifact(tmp_path / f"again{seed}", "1.1.0", seed=seed))
        assert str(other.next_version(self.name)) == "1.1.1"
        assert str(other.resolve(self.name).version) == "1.0.0"
        if self.supports_aliases:
            assert other.resolve(self.name).aliases == ("fine", "latest")

    def test_the_last_version_can_be_removed(self, registry: Registry, source: Path) -> None:
        """The name is gone then, and its numbers stay taken."""
        self.need(of=self.supports_remove, what="removing")
        self.publish(registry, source)
        with pytest.raises(UsageError):
            registry.remove(self.name)
        registry.remove(f"{self.name}@1.0.0")
        assert registry.names() == ()
        assert registry.list() == ()
        with pytest.raises(NotFoundError):
            registry.open(self.name)
        assert str(registry.next_version(self.name)) == "1.0.1"
        assert [event.action for event in registry.log(self.name)] == ["publish", "remove"]

    def test_versions_are_found_by_what_they_say(self, registry: Registry, tmp_path: Path) -> None:
        """`search` by words and fields, and `diff` of two versions."""
        self.publish(registry, sample_artifact(tmp_path / "1", description="Writes like a lawyer."))
        self.publish(registry, sample_artifact(tmp_path / "2", "1.1.0", seed=2))
        assert [entry.label for entry in registry.search("LAWYER formal")] == [f"{self.name}@1.0.0"]
        assert len(registry.search(base="acme/", kind="contrastive")) == 2
        assert registry.search("honest") == registry.search(kind="task_vector") == ()
        found = registry.diff(f"{self.name}@1.0.0", f"{self.name}@1.1.0")
        assert {change.field for change in found.fields} == {"description", "version"}
        assert (len(found.changed), found.unchanged) == (3, 0)

    def test_a_name_that_is_nearly_right_is_suggested(self, registry: Registry, source: Path) -> None:
        """The error of an unknown name tells the nearest one."""
        self.publish(registry, source)
        with pytest.raises(NotFoundError, match=f"did you mean {self.name}"):
            registry.resolve(f"{self.name}l")
