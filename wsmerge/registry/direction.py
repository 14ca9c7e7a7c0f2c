"""A direction on disk: the artifact folder, opened, written and verified.

    direction.json                              the manifest
    adapter_config.json, adapter_model.safetensors
        or direction.safetensors (or shards)
        or direction.zarr/                      the payload
    meta.yaml, README.md                        what people and the Hub read

`Direction` is a `DeltaSource`, so what takes deltas takes one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import Delta, DenseDelta, LowRankDelta
from wsmerge.core.ranges import read_all
from wsmerge.core.tensors import BaseIdentity
from wsmerge.errors import DirectionError, Problems, TensorFileError, VerificationError
from wsmerge.registry.artifact_reading import read_manifest
from wsmerge.registry.files import ArtifactFiles, FolderFiles
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.payloads import (
    ADAPTER_CONFIG_FILE,
    Payload,
    adapter_config_problems,
    component_key,
    component_keys,
    open_payload,
)
from wsmerge.registry.records import TensorRecord

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

__all__ = [
    "Direction",
    "check_agreement",
    "open_direction",
    "open_direction_folder",
    "verify_direction",
]


class Direction(Closing):
    """An opened artifact folder; a context manager. Tensors are read when asked for; threads may share it.

    Every array is hashed against the manifest before the first of its elements is given to anybody: factors as they are
    read, a dense delta in a pass of its own, since it is then read by blocks in any order.

    Attributes:
        label: `name@version`, or `owner/name@version` of what was pulled.
        files: the files that it is made of.
        payload: its arrays.
        manifest: its `direction.json`.
    """

    def __init__(self, files: ArtifactFiles, manifest: Manifest, payload: Payload, *, label: str | None = None) -> None:
        self.files = files
        self.manifest = manifest
        self.payload = payload
        self.label = label or manifest.label
        self._rows = {row.name: row for row in manifest.tensors}
        self._reference = label or (str(files.folder.absolute()) if files.folder else files.label)
        self._verified: set[str] = set()
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    @property
    def path(self) -> Path:
        """The artifact folder.

        Raises:
            DirectionError: the files lie on no disk of this machine.
        """
        if self.files.folder is None:
            raise DirectionError("lies on no disk of this machine", where=self.label, hint="wsmerge pull copies it")
        return self.files.folder

    @property
    def pinned(self) -> str:
        """How a published recipe names it: so that the same bytes are found again, where it can be."""
        return self.label

    @cached_property
    def digest(self) -> str:
        """The version digest."""
        return self.manifest.version_digest

    @property
    def base(self) -> BaseIdentity:
        """The base that the deltas were made over."""
        base = self.manifest.base
        return BaseIdentity(base.model, base.structure, base.weights, base.tied)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name and shape of each tensor that has a delta."""
        return {name: row.shape for name, row in self._rows.items()}

    def rank(self, name: str) -> int | None:
        """Rank of the factors of the delta for `name`, None for a dense one; reads no weights."""
        return self._row(name).rank

    def low_rank(self, name: str) -> LowRankDelta:
        """The float32 factors of the low-rank delta for `name`, oriented as the checkpoint's tensor.

        Raises:
            DirectionError: the delta is dense, or there is none.
            VerificationError: stored bytes that are not those that the manifest names.
        """
        row = self._row(name)
        if not row.low_rank:
            raise DirectionError(f"the delta of {name} is dense", where=self.label)
        delta = LowRankDelta(self._array(row, "lora_B"), self._array(row, "lora_A"))
        return delta if row.layout == "linear" else delta.transposed()

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of the dense delta for `name` from element `start` on.

        Raises:
            DirectionError: the delta is low-rank, or there is none.
            VerificationError: stored bytes that are not those that the manifest names, wherever they are in the delta.
        """
        row = self._dense_row(name)
        key = self._key(row, "delta")
        if not (self.payload.verified or key in self._verified):
            self._verify_blocks(row, key)
        self.payload.read_into(key, start, out)

    def read_sample(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """As `read_dense`, without reading the rest of the delta to hash it: for estimates from a part of it."""
        self.payload.read_into(self._key(self._dense_row(name), "delta"), start, out)

    def delta(self, name: str) -> Delta:
        """The delta for `name`, read whole."""
        row = self._row(name)
        return self.low_rank(name) if row.low_rank else DenseDelta(self._array(row, "delta"))

    def close(self) -> None:
        """Close the payload's files; reading tensors afterwards is an error."""
        self.payload.close()

    def __repr__(self) -> str:
        return f"<Direction {self.label} of {len(self._rows)} tensors at {self.files.label}>"

    def _row(self, name: str) -> TensorRecord:
        row = self._rows.get(name)
        if row is None:
            raise DirectionError(f"has no delta for {name}", where=self.label)
        return row

    def _dense_row(self, name: str) -> TensorRecord:
        row = self._row(name)
        if row.low_rank:
            raise DirectionError(f"the delta of {name} is held as two factors", where=self.label)
        return row

    def _array(self, row: TensorRecord, component: str) -> NDArray[np.float32]:
        """One array whole, hashed against the manifest the first time that it is read."""
        key = self._key(row, component)
        values = self.payload.read(key)
        if not (self.payload.verified or key in self._verified):
            self._check(row, component, sha256(values.data))
            self._verified.add(key)
        return values

    def _verify_blocks(self, row: TensorRecord, key: str) -> None:
        """Hash a dense delta; of several threads that read it first one does, and the others wait."""
        with self._locks[key]:
            if key in self._verified:
                return
            digest = sha256()
            for block in self.payload.blocks(key):
                digest.update(block.data)
            self._check(row, "delta", digest)
            self._verified.add(key)

    def _check(self, row: TensorRecord, component: str, digest: Hash) -> None:
        expected = next(part.sha256 for part in row.components if part.component == component)
        if digest.hexdigest() != expected:
            raise VerificationError(
                f"{row.name}: the bytes of {component} are not those that the manifest names",
                where=self.label,
                hint=f"wsmerge verify {self._reference}",
            )

    def _key(self, row: TensorRecord, component: str) -> str:
        return component_key(row, component, adapter=self.payload.adapter)


def open_direction_folder(path: Path, *, label: str | None = None) -> Direction:
    """Open the artifact in folder `path`; see `open_direction`.

    Raises:
        DirectionError: also that the folder holds no artifact.
    """
    return open_direction(FolderFiles(path), label=label)


def open_direction(files: ArtifactFiles, *, label: str | None = None) -> Direction:
    """Open an artifact wherever it lies, reading headers only. Close it after use.

    Args:
        files: what it is made of.
        label: how messages name it, where not as the manifest does.

    Raises:
        DirectionError: no artifact, or a payload that does not agree with the manifest; every tensor is named.
        ManifestError: a bad `direction.json`.
        TensorFileError: a broken payload.
        MissingDependencyError: a zarr payload whose codec is not installed.
    """
    manifest = read_manifest(files)
    payload = open_payload(files)
    try:
        check_agreement(manifest, payload)
    except BaseException:
        payload.close()
        raise
    return Direction(files, manifest, payload, label=label)


def check_agreement(manifest: Manifest, payload: Payload) -> None:
    """See that a payload has the arrays that the manifest names, and no others; their bytes are not read.

    Raises:
        DirectionError: with every array that does not agree.
    """
    problems = Problems()
    if payload.adapter and manifest.adapter_obstacle:
        problems.add(f"the payload is a PEFT adapter, and cannot be one: {manifest.adapter_obstacle}")
    specs = payload.specs
    expected = {key: part for key, _, part in component_keys(manifest.tensors, adapter=payload.adapter)}
    for key, part in expected.items():
        spec = specs.get(key)
        if spec is None:
            problems.add(f"{key}: missing from the payload")
        elif (spec.dtype.name, spec.shape) != (part.dtype, part.shape):
            problems.add(
                f"{key}: {spec.dtype.name} {list(spec.shape)} in the payload, "
                f"{part.dtype} {list(part.shape)} in the manifest"
            )
    for key in sorted(set(specs) - set(expected)):
        problems.add(f"{key}: not in the manifest")
    problems.raise_if_any(
        DirectionError,
        "payload and manifest do not agree",
        where=payload.label,
        hint="copy the artifact again from its source",
    )


def verify_direction(direction: Direction) -> tuple[str, ...]:
    """Hash every component of `direction` against its manifest; all problems, one a line, or none."""
    problems = Problems()
    if direction.payload.adapter:
        _check_adapter_config(direction, problems)
    for line in direction.payload.contradictions(direction.manifest.canonical_bytes().decode()):
        problems.add(line)
    for key, row, part in component_keys(direction.manifest.tensors, adapter=direction.payload.adapter):
        digest = sha256()
        finite = True
        for block in direction.payload.blocks(key):
            digest.update(block.data)
            finite = finite and bool(np.isfinite(block).all())
        if digest.hexdigest() != part.sha256:
            problems.add(f"{row.name}: the bytes of {part.component} are not those that the manifest names")
        if not finite:
            problems.add(f"{row.name}: {part.component} holds NaN or infinity")
    return problems.lines


def _check_adapter_config(direction: Direction, problems: Problems) -> None:
    """The factors alone are not the delta that PEFT applies: its settings scale them and say where they go."""
    try:
        data = _contents(direction.files, ADAPTER_CONFIG_FILE)
    except TensorFileError as error:
        problems.add(f"{ADAPTER_CONFIG_FILE}: cannot be read: {error}")
        return
    for problem in adapter_config_problems(data, direction.manifest.tensors, direction.manifest.base):
        problems.add(f"{ADAPTER_CONFIG_FILE}: {problem}")


def _contents(files: ArtifactFiles, name: str) -> bytes:
    return read_all(files.open(name))
