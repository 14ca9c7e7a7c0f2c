"""Part of a direction: the tensors of some layers and modules, as a direction of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.hub.connection import Hub
from wsmerge.core.layers import layer_position
from wsmerge.core.tensors import BaseIdentity
from wsmerge.errors import NotFoundError, UsageError
from wsmerge.registry.artifact import About, write_direction
from wsmerge.registry.artifact_reading import artifact_files
from wsmerge.registry.direction import Direction
from wsmerge.registry.entries import Entry
from wsmerge.registry.hub.download import Progress
from wsmerge.registry.hub.remote import RemoteDirection, open_remote
from wsmerge.registry.payloads import component_keys
from wsmerge.registry.records import ParentRecord, TensorRecord, told_modules
from wsmerge.registry.references import HubReference, StoreReference, check_name
from wsmerge.registry.registry import Registry

__all__ = ["PartialDirection", "PulledPart", "parse_layers", "partial_direction", "partial_name", "pull_part"]

_RANGE: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_MAX_NAME: Final = 96


class PartialDirection:
    """Some tensors of a direction, as a `DeltaSource`; the others are never read.

    Args:
        direction: the whole one.
        rows: the rows of its manifest that are taken.
    """

    def __init__(self, direction: Direction, rows: Sequence[TensorRecord]) -> None:
        self.label = direction.label
        self.rows = tuple(rows)
        self.digest = ""
        self._direction = direction

    @property
    def base(self) -> BaseIdentity:
        """The base of the whole."""
        return self._direction.base

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name and shape of each tensor that is taken."""
        return {row.name: row.shape for row in self.rows}

    def rank(self, name: str) -> int | None:
        """As of the whole."""
        return self._direction.rank(name)

    def low_rank(self, name: str) -> LowRankDelta:
        """As of the whole."""
        return self._direction.low_rank(name)

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """As of the whole."""
        self._direction.read_dense(name, start, out)

    def about(self, name: str) -> About:
        """What its manifest says: what the whole one says, and that it is a part of it."""
        whole = self._direction.manifest
        parent = ParentRecord(reference=self._direction.pinned, version_digest=whole.version_digest, coefficient=1.0)
        return About(
            name=name,
            kind=whole.kind,
            version=whole.version,
            description=whole.description,
            base_revision=whole.base.revision,
            base_origin=whole.base.origin,
            poles=whole.poles,
            datasets=whole.datasets,
            layouts={row.name: row.layout for row in self.rows if row.layout is not None},
            modules=told_modules(self.rows),
            licence=whole.licence,
            parents=(parent,),
            created=whole.created,
        )


@dataclass(frozen=True, slots=True)
class PulledPart:
    """What pulling a part came to.

    Attributes:
        entry: the part in the store.
        commit: the commit that it was taken from, 40 digits.
        bytes_read: bytes that came from the Hub, headers and manifest included.
        whole_bytes: bytes of the whole direction's files.
    """

    entry: Entry
    commit: str
    bytes_read: int
    whole_bytes: int


def partial_direction(
    direction: Direction, *, layers: str | None = None, modules: Sequence[str] = ()
) -> PartialDirection:
    """The tensors of `direction` that are in some layers and modules.

    Args:
        direction: the whole one.
        layers: inclusive ranges, of any stack: `8-15`, or `0,3,8-15`; None for all, and for tensors of no layer.
        modules: parts of tensor names, of which a name has to have one: `mlp`, `q_proj`; none for all.

    Raises:
        UsageError: `layers` does not parse, or nothing is chosen.
    """
    wanted = None if layers is None else parse_layers(layers)
    rows = [row for row in direction.manifest.tensors if _is_chosen(row.name, wanted, modules)]
    if not rows:
        covered = ", ".join(f"{stack}: {_spans(found)}" for stack, found in direction.manifest.layers.items())
        raise UsageError(
            "no tensor is in these layers and modules",
            where=direction.label,
            hint=f"it has {covered or 'no layers'}; modules {', '.join(direction.manifest.modules)}",
        )
    return PartialDirection(direction, rows)


def parse_layers(text: str) -> frozenset[int]:
    """The layers that `text` names: `8`, `8-15`, `0,3,8-15`.

    Raises:
        UsageError: it has none of these forms.
    """
    layers: set[int] = set()
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        if last < first:
            raise UsageError(
                f"--layers {text!r}: {item.strip()!r} is no range of layers", hint="write 8, 8-15 or 0,3,8-15"
            )
        layers.update(range(first, last + 1))
    return frozenset(layers)


def partial_name(repo: str, layers: str | None, modules: Sequence[str]) -> str:
    """What a part of `repo` is called unless it is given a name: `formal-layers-8-15-mlp`."""
    chosen = ([f"layers-{layers.replace(',', '_')}"] if layers else []) + list(modules)
    text = "-".join([repo.rpartition("/")[2], *chosen]).lower()
    kept = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._-]", "-", text)))
    return kept[:_MAX_NAME].strip("._-")


def pull_part(
    hub: Hub,
    reference: HubReference,
    store: Registry,
    *,
    layers: str | None = None,
    modules: Sequence[str] = (),
    name: str | None = None,
    progress: Progress | None = None,
) -> PulledPart:
    """Fetch some tensors of a direction on the Hub into `store`, as a direction of its own, and nothing else of it.

    It has the version of the whole, another content digest, and names the whole at its commit as its parent. Pulled again
    from another commit, it is the same part unless something of it changed.

    Args:
        hub: the connection.
        reference: the whole one.
        store: where the part goes.
        layers: as in `partial_direction`.
        modules: as in `partial_direction`.
        name: in the store; `partial_name` if None.
        progress: called with bytes of the tensors that have come, and bytes that will.

    Raises:
        HubError: it is not there, or the Hub is not reached.
        UsageError: nothing is chosen.
        VerificationError: bytes that are not those that the manifest names; nothing is stored.
        ConflictError: the store has another direction of this name and version.
    """
    name = check_name(name or partial_name(reference.repo, layers, modules))
    with open_remote(hub, reference, ahead=False) as whole, store.scratch() as scratch:
        part = partial_direction(whole, layers=layers, modules=modules)
        _fetch(whole, part, progress)
        with write_direction(scratch / "direction", part, part.about(name)) as written:
            entry = _same_part(store, written) or store.publish(written)
        whole_bytes = sum(whole.commit.files[file].size for file in artifact_files(whole.files))
        return PulledPart(entry, whole.commit.commit, whole.bytes_read, whole_bytes)


def _same_part(store: Registry, written: Direction) -> Entry | None:
    """The version that the store has already, if only the commit that the whole is at, or its other parts, differ."""
    manifest = written.manifest
    try:
        entry = store.resolve(StoreReference(manifest.name, "version", manifest.version))
    except NotFoundError:
        return None
    return entry if entry.manifest.says_same(manifest, but=("parents", "tool")) else None


def _fetch(whole: RemoteDirection, part: PartialDirection, progress: Progress | None) -> None:
    """Fetch and check the arrays of `part`, in the order in which they lie."""
    keys = [key for key, _, _ in component_keys(part.rows, adapter=whole.payload.adapter)]
    whole.payload.expect(keys)
    total = sum(whole.payload.specs[key].nbytes for key in keys)
    done = 0
    first = np.empty(1, np.float32)
    for key in keys:
        spec = whole.payload.specs[key]
        if spec.numel:
            whole.payload.read_into(key, 0, first)  # the first element: that fetches and checks all of the array
        done += spec.nbytes
        if progress is not None:
            progress(done, total)


def _is_chosen(name: str, layers: frozenset[int] | None, modules: Sequence[str]) -> bool:
    if layers is not None:
        position = layer_position(name)
        if position is None or position.layer not in layers:
            return False
    return not modules or any(module in name for module in modules)


def _spans(layers: Sequence[int]) -> str:
    """`0-3, 8`, of layers in order."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
