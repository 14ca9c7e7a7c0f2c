"""Checks of publishing and opening: what goes in comes out, once and for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsmerge.errors import BadReferenceError, ConflictError, DirectionError, NotFoundError, VerificationError
from wsmerge.registry.direction import open_direction_folder, verify_direction
from wsmerge.registry.files import FolderFiles
from wsmerge.registry.registry import Registry
from wsmerge.registry.testing.harness import Harness, contents
from wsmerge.registry.testing.samples import sample_artifact, sample_direction

__all__ = ["PublishingChecks"]


class PublishingChecks(Harness):
    """Publishing is whole or not at all, changes nothing, and a version never changes."""

    def test_an_empty_registry_says_so(self, registry: Registry) -> None:
        """Reading what nothing was published to finds nothing, and says so by `NotFoundError`."""
        assert registry.names() == ()
        assert registry.list() == ()
        assert registry.survey().entries == ()
        assert str(registry.next_version(self.name)) == "1.0.0"
        for reference in (self.name, f"{self.name}@1.0.0", f"{self.name}@good", f"{self.name}@sha256:{'0' * 64}"):
            with pytest.raises(NotFoundError):
                registry.resolve(reference)
            with pytest.raises(NotFoundError):
                registry.open(reference)
        with pytest.raises(NotFoundError):
            registry.versions(self.name)

    @pytest.mark.parametrize("dense", [False, True])
    def test_what_is_published_is_opened_bit_for_bit(self, registry: Registry, tmp_path: Path, *, dense: bool) -> None:
        """Every file, every element and both digests are those of the source."""
        source = sample_artifact(tmp_path / "source", dense=dense)
        entry = self.publish(registry, source)
        truth = sample_direction(dense=dense)
        with self.again(registry).open(self.name) as direction, open_direction_folder(source) as original:
            assert contents(direction.files) == contents(FolderFiles(source))
            assert direction.digest == original.digest == entry.version_digest
            assert direction.manifest.content_digest == entry.content_digest
            assert verify_direction(direction) == ()
            assert set(direction.shapes) == set(truth.deltas)
            for name, delta in truth.deltas.items():
                assert np.array_equal(direction.delta(name).dense(), delta.dense())

    def test_a_part_of_a_dense_delta_is_read_by_itself(self, registry: Registry, tmp_path: Path) -> None:
        """Elements are read from any place on."""
        self.publish(registry, sample_artifact(tmp_path / "source", dense=True))
        with registry.open(self.name) as direction:
            for name, delta in sample_direction(dense=True).deltas.items():
                part = np.empty(21, np.float32)
                direction.read_dense(name, 17, part)
                assert np.array_equal(part, delta.dense().ravel()[17:38])

    def test_every_form_of_a_reference_means_it(self, registry: Registry, source: Path) -> None:
        """Name, version, `latest` and digests, whole or the first twelve digits."""
        entry = self.publish(registry, source)
        assert (entry.name, str(entry.version), entry.label) == (self.name, "1.0.0", f"{self.name}@1.0.0")
        for selector in (
            "",
            "@1.0.0",
            "@latest",
            f"@sha256:{entry.version_digest}",
            f"@sha256:{entry.version_digest[:12]}",
            f"@content:{entry.content_digest}",
            f"@content:{entry.content_digest[:12]}",
        ):
            assert registry.resolve(f"{self.name}{selector}") == entry
            with registry.open(f"{self.name}{selector}") as direction:
                assert direction.digest == entry.version_digest
        with pytest.raises(NotFoundError):
            registry.resolve(f"{self.name}@sha256:000000000000")

    def test_another_opening_sees_the_same(self, registry: Registry, source: Path) -> None:
        """Nothing is kept in the one that wrote."""
        entry = self.publish(registry, source)
        other = self.again(registry)
        assert other.names() == (self.name,)
        assert other.list() == other.versions(self.name) == (entry,)

    def test_publishing_again_does_nothing(self, registry: Registry, source: Path) -> None:
        """The same direction as the same version is no error, and no event."""
        first = self.publish(registry, source)
        assert self.publish(self.again(registry), source) == first
        with open_direction_folder(source) as direction:
            assert registry.publish(direction, name=self.name) == first
        if self.supports_log:
            assert [(event.action, event.version) for event in registry.log(self.name)] == [("publish", "1.0.0")]

    def test_other_content_under_a_taken_version_is_a_conflict(self, registry: Registry, tmp_path: Path) -> None:
        """The error names both digests, and the first content stays."""
        first = self.publish(registry, sample_artifact(tmp_path / "first"))
        other = sample_artifact(tmp_path / "other", seed=2)
        with open_direction_folder(other) as direction, pytest.raises(ConflictError) as caught:
            registry.publish(direction, name=self.name)
        assert first.version_digest in str(caught.value)
        assert direction.digest in str(caught.value)
        assert registry.list() == (first,)
        with registry.open(self.name) as direction:
            assert verify_direction(direction) == ()

    def test_other_metadata_under_a_taken_version_is_a_conflict(self, registry: Registry, tmp_path: Path) -> None:
        """A version is its manifest too, not its tensors alone."""
        first = self.publish(registry, sample_artifact(tmp_path / "first"))
        with pytest.raises(ConflictError):
            self.publish(registry, sample_artifact(tmp_path / "other", description="Another."))
        assert registry.list() == (first,)

    def test_an_artifact_that_is_not_whole_is_not_published(self, registry: Registry, source: Path) -> None:
        """A file is missing: nothing appears."""
        (source / "adapter_config.json").unlink()
        with pytest.raises(DirectionError, match=r"adapter_config\.json"):
            self.publish(registry, source)
        assert registry.names() == ()

    def test_tensors_that_are_not_what_the_manifest_says_are_not_published(
        self, registry: Registry, source: Path
    ) -> None:
        """A byte of the payload was changed: nothing appears."""
        payload = source / "adapter_model.safetensors"
        data = bytearray(payload.read_bytes())
        data[-1] ^= 1
        payload.write_bytes(data)
        with pytest.raises(VerificationError):
            self.publish(registry, source)
        assert registry.names() == ()

    def test_a_bad_alias_or_name_is_refused_before_anything_is_written(self, registry: Registry, source: Path) -> None:
        """`BadReferenceError`, and the registry stays empty."""
        with pytest.raises(BadReferenceError):
            registry.publish(source, name=self.name, aliases=("1.0.0",))
        with pytest.raises(BadReferenceError):
            registry.publish(source, name="No Name")
        assert registry.names() == ()

    def test_under_another_version_only_the_metadata_changes(self, registry: Registry, source: Path) -> None:
        """The manifest is rewritten, the tensors are not."""
        self.need(of=self.supports_renaming, what="publishing under another version")
        first = self.publish(registry, source)
        second = registry.publish(source, name=self.name, version="2.0.0")
        assert second.content_digest == first.content_digest
        assert second.version_digest != first.version_digest
        assert second.manifest.fields() == first.manifest.fields() | {"version": "2.0.0"}
        with pytest.raises(BadReferenceError):
            registry.publish(source, name=self.name, version="2")
        with registry.open(f"{self.name}@2.0.0") as direction:
            payload = contents(direction.files)["adapter_model.safetensors"]
            assert payload == (source / "adapter_model.safetensors").read_bytes()
        assert registry.resolve(f"{self.name}@content:{first.content_digest[:12]}") == registry.resolve(
            f"{self.name}@2.0.0"
        )
