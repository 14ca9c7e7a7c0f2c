"""Checks of what a crash leaves, at every request that an operation makes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from wsmerge.errors import NotFoundError
from wsmerge.registry.registry import Registry
from wsmerge.registry.testing.faults import CrashError
from wsmerge.registry.testing.harness import Harness
from wsmerge.registry.testing.samples import sample_artifact

__all__ = ["CrashChecks"]

_OLD_BY_NOW: Final = -60.0
_MOST_REQUESTS: Final = 500


class CrashChecks(Harness):
    """After a crash a version is there whole or not at all, and doing the same again ends well."""

    @abstractmethod
    def dying(self, registry: Registry, requests: int, *, answered: bool) -> Registry:
        """The same registry, whose process crashes after so many requests; see `DyingObjects`."""

    @pytest.mark.parametrize("answered", [True, False])
    def test_a_crash_while_publishing(self, tmp_path: Path, *, answered: bool) -> None:
        """Nothing or all is there, and publishing again ends with one version, one event and one alias."""
        first = sample_artifact(tmp_path / "first")
        # The tensors are those of the first, so the new version shares a blob with it.
        second = sample_artifact(tmp_path / "second", "1.1.0")
        seen = set()
        for registry in self._crashed(tmp_path, first, lambda one: self.publish(one, second, ("good",)), answered):
            versions = [str(entry.version) for entry in registry.versions(self.name)]
            assert versions in (["1.0.0"], ["1.0.0", "1.1.0"])
            seen.add(len(versions))
            assert registry.verify().problems == ()
            self.publish(registry, second, ("good",))
            assert [entry.aliases for entry in registry.versions(self.name)] == [(), ("good", "latest")]
            assert [(event.action, event.version) for event in registry.log(self.name)] == [
                ("publish", "1.0.0"),
                ("publish", "1.1.0"),
                ("tag", "1.1.0"),
            ]
            self._check_clean(registry, 2)
        assert seen == {1, 2}

    @pytest.mark.parametrize("answered", [True, False])
    def test_a_crash_while_tagging(self, tmp_path: Path, *, answered: bool) -> None:
        """The alias points to the one or the other."""
        source = sample_artifact(tmp_path / "first")
        seen = set()
        for registry in self._crashed(tmp_path, source, lambda one: one.tag(self.name, "good", "1.0.0"), answered):
            (entry,) = registry.versions(self.name)
            assert entry.aliases in (("latest",), ("good", "latest"))
            seen.add(len(entry.aliases))
            registry.tag(self.name, "good", "1.0.0")
            assert [event.action for event in registry.log(self.name)] == ["publish", "tag"]
        assert seen == ({1} if answered and 2 not in seen else {1, 2})

    @pytest.mark.parametrize("answered", [True, False])
    def test_a_crash_while_removing(self, tmp_path: Path, *, answered: bool) -> None:
        """The version is there whole, or gone for good."""
        source = sample_artifact(tmp_path / "first")
        seen = set()
        for registry in self._crashed(tmp_path, source, lambda one: one.remove(f"{self.name}@1.0.0"), answered):
            seen.add(registry.names())
            assert registry.verify().problems == ()
            try:
                registry.remove(f"{self.name}@1.0.0")
            except NotFoundError:
                assert registry.names() == ()
            assert [event.action for event in registry.log(self.name)] == ["publish", "remove"]
            self._check_clean(registry, 0)
        # Where the last request is the one that removes, no crash after it can be had, but for one without an answer.
        assert seen == ({(self.name,)} if answered and () not in seen else {(), (self.name,)})

    @pytest.mark.parametrize("answered", [True, False])
    def test_a_crash_while_collecting_garbage(self, tmp_path: Path, *, answered: bool) -> None:
        """What is used stays, and the next `gc` takes the rest."""
        source = sample_artifact(tmp_path / "first")
        other = sample_artifact(tmp_path / "other", "1.1.0", seed=2)

        def prepare(one: Registry) -> None:
            self.publish(one, other)
            one.remove(f"{self.name}@1.1.0")

        def collect(one: Registry) -> None:
            one.gc(dry_run=False, min_age_s=_OLD_BY_NOW)

        for registry in self._crashed(tmp_path, source, collect, answered, prepare):
            assert [entry.label for entry in registry.list()] == [f"{self.name}@1.0.0"]
            assert str(registry.next_version(self.name)) == "1.1.1"
            self._check_clean(registry, 1)

    def _crashed(
        self,
        tmp_path: Path,
        first: Path,
        operation: Callable[[Registry], object],
        answered: bool,  # noqa: FBT001 - passed on from pytest's parameter
        prepare: Callable[[Registry], object] = lambda _: None,
    ) -> Iterator[Registry]:
        """A registry that holds `first`, after `operation` crashed at its n-th request, for every n."""
        (tmp_path / "registries").mkdir()
        for requests in range(0 if answered else 1, _MOST_REQUESTS):
            registry = self.make(tmp_path / "registries" / str(requests))
            self.publish(registry, first)
            prepare(registry)
            try:
                operation(self.dying(registry, requests, answered=answered))
            except CrashError:
                yield self.again(registry)
            else:
                assert requests > 1, "the operation made no request"
                return
        raise AssertionError(f"the operation makes more than {_MOST_REQUESTS} requests")

    def _check_clean(self, registry: Registry, versions: int) -> None:
        """Garbage can be collected, once, and what is used stays whole."""
        registry.gc(dry_run=False, min_age_s=_OLD_BY_NOW)
        report = registry.gc(min_age_s=_OLD_BY_NOW)
        assert (report.blobs, report.temporaries, report.freed_bytes) == (0, 0, 0)
        assert len(registry.verify().versions) == versions
        assert registry.verify().problems == ()
