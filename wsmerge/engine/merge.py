"""Runs a plan: stream into OUT.partial, sidecars, report, rename."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from wsmerge.core.hub.commit import RepoCommit
from wsmerge.engine.account import SourceAccount
from wsmerge.engine.fidelity import FidelityReport, fidelity_report
from wsmerge.engine.journal import Journal
from wsmerge.engine.kernels import kernels_name
from wsmerge.engine.layout import INDEX_FILE, index_json
from wsmerge.engine.model_card import model_card
from wsmerge.engine.non_finite import NonFinite
from wsmerge.engine.output import OutputFolder
from wsmerge.engine.placing import REPORT_FILE, check_output
from wsmerge.engine.plan import MergePlan
from wsmerge.engine.sidecars import OutputFiles, write_beside, write_synced
from wsmerge.engine.sink import ShardFiles
from wsmerge.engine.stream import Progress, StreamResult, run_stream
from wsmerge.errors import OutputError

__all__ = ["MergeJob", "MergeReport", "input_paths", "run_merge"]

SCHEMA: Final = "wsmerge.merge/v1"
_TOLD_TENSORS: Final = 5
_REPORT_IT: Final = "the disk may have failed: run it again; if it fails again, report it as a fault of wsmerge"


@dataclass(frozen=True, slots=True)
class MergeJob:
    """Everything that a merge is told beside its plan.

    Attributes:
        out: the folder to make.
        recipe: the recipe as JSON values, for provenance and the model card; it is published with the checkpoint, so it
            names models and directions as others know them, not by paths of this machine.
        base_model: how the card names the base: a Hub id, else the folder's name.
        files: what is written beside the weights.
        warnings: what planning found that the user should know.
        overwrite: whether an `out` that wsmerge wrote may be replaced.
        keep_partial: whether an interrupted merge leaves OUT.partial, to be resumed.
    """

    out: Path
    recipe: Mapping[str, Any]
    base_model: str
    files: OutputFiles
    warnings: tuple[str, ...] = ()
    overwrite: bool = False
    keep_partial: bool = False


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the checkpoint folder.
        fidelity: how much of the directions is left after rounding.
        warnings: what the user should know; already worded for them.
        elapsed_s: wall time in seconds.
        resumed_bytes: of the tensor files, what an earlier run that was killed had written.
        written_bytes: bytes of the tensor files.
        outputs: SHA-256 of each tensor file.
        hub_bytes: bytes of models and directions that were read from the Hub by range.
        hub_requests: in how many requests.
        accounts: for each checkpoint and adapter, what became of its tensors.
        non_finite: output tensors with NaN, or with infinity that no source has.
    """

    out: Path
    fidelity: FidelityReport
    warnings: tuple[str, ...]
    elapsed_s: float
    resumed_bytes: int
    written_bytes: int
    outputs: Mapping[str, str]
    hub_bytes: int = 0
    hub_requests: int = 0
    accounts: tuple[SourceAccount, ...] = ()
    non_finite: Mapping[str, NonFinite] = field(default_factory=dict)


def run_merge(plan: MergePlan, job: MergeJob, progress: Progress | None = None) -> MergeReport:
    """Carry out `plan` and return when the checkpoint stands at `job.out`.

    Raises:
        OutputError: the output exists, or cannot be written; nothing is left behind.
        TensorFileError: an input changed or ended while it was read; nothing is left behind.
        HubError: an input on the Hub could not be read; nothing is left behind.
    """
    started = time.monotonic()
    check_output(job.out, input_paths(plan), plan.write_bytes, overwrite=job.overwrite)
    with OutputFolder(job.out, plan, overwrite=job.overwrite, keep_partial=job.keep_partial) as output:
        result = _write_tensors(plan, output.folder, progress)
        fidelity = fidelity_report(plan, result.moments)
        non_finite = {plan.tensors[number].spec.name: found for number, found in sorted(result.non_finite.items())}
        report = _report(plan, job, result, fidelity, non_finite)
        _write_sidecars(plan, job, output.folder, report)
        _read_back(plan, output.folder)
        output.finish()
    return MergeReport(
        out=job.out,
        fidelity=fidelity,
        warnings=tuple(report["warnings"]),
        elapsed_s=time.monotonic() - started,
        resumed_bytes=result.resumed_bytes,
        written_bytes=plan.write_bytes,
        outputs=result.shard_digests,
        hub_bytes=sum(commit.bytes_read for commit in plan.commits),
        hub_requests=sum(commit.traffic.requests for commit in plan.commits),
        accounts=plan.accounts,
        non_finite=non_finite,
    )


def input_paths(plan: MergePlan) -> list[Path]:
    """The folders that a merge reads, which its output may not lie over."""
    sources = [*(item.source for item in plan.directions), *plan.inline]
    # A direction whose files lie on no disk has no folder that the output could lie over.
    folders = [getattr(getattr(source, "files", None), "folder", None) for source in sources]
    return [*(model.path for model in plan.models), *(folder for folder in folders if isinstance(folder, Path))]


def _write_tensors(plan: MergePlan, folder: Path, progress: Progress | None) -> StreamResult:
    journal = Journal(folder, plan)
    try:
        with ShardFiles(folder, plan.shards) as files:
            result = run_stream(plan, files, journal, progress)
            files.sync()
    finally:
        journal.close()
    return result


def _read_back(plan: MergePlan, folder: Path) -> None:
    """Open each written tensor file with the safetensors package, by whose rules everyone else reads it.

    Raises:
        OutputError: it refuses a file, or finds other tensors than those that were planned.
    """
    for shard in plan.shards:
        try:
            with safe_open(folder / shard.file, framework="numpy") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise OutputError(f"safetensors cannot read it back: {error}", where=shard.file, hint=_REPORT_IT) from error
        if found != {spec.name: spec.shape for spec in shard.specs}:
            raise OutputError("read back, it does not hold what was planned", where=shard.file, hint=_REPORT_IT)


def _write_sidecars(plan: MergePlan, job: MergeJob, folder: Path, report: Mapping[str, Any]) -> None:
    beside = write_beside(job.files, folder)
    written = [*beside, *(shard.file for shard in plan.shards), "README.md", REPORT_FILE]
    if len(plan.shards) > 1:
        write_synced(folder / INDEX_FILE, index_json(plan.shards))
        written.append(INDEX_FILE)
    write_synced(folder / "README.md", model_card(report))
    text = json.dumps({**report, "files": sorted(written)}, indent=2, allow_nan=False)
    write_synced(folder / REPORT_FILE, text.encode() + b"\n")


def _report(
    plan: MergePlan,
    job: MergeJob,
    result: StreamResult,
    fidelity: FidelityReport,
    non_finite: Mapping[str, NonFinite],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "recipe": dict(job.recipe),
        "plan": plan.digest,
        "base": {"model": job.base_model, "structure": plan.base.structure, "weights": result.base_weights},
        "models": _models(plan, job),
        "numerics": plan.numerics.to_dict(),
        "directions": [_direction_report(plan, number) for number in range(len(plan.directions))],
        "inline_directions": [{"label": source.label, "digest": source.digest} for source in plan.inline],
        "outputs": {
            shard.file: {"bytes": shard.file_bytes, "sha256": result.shard_digests[shard.file]} for shard in plan.shards
        },
        **({"hub": [_streamed(commit) for commit in plan.commits]} if plan.commits else {}),
        "versions": _versions(),
        "fidelity": fidelity.to_dict(),
        "non_finite": {name: asdict(found) for name, found in non_finite.items()},
        "warnings": _warnings(plan, job, result, fidelity, non_finite),
    }


def _direction_report(plan: MergePlan, number: int) -> dict[str, Any]:
    source = plan.directions[number].source
    ks = [term.k for tensor in plan.tensors for term in tensor.terms if term.direction == number]
    return {
        "label": source.label,
        "digest": source.digest,
        "base": {"model": source.base.model, "structure": source.base.structure, "weights": source.base.weights},
        "tensors": len(ks),
        "k_min": min(ks, default=0.0),
        "k_max": max(ks, default=0.0),
    }


def _models(plan: MergePlan, job: MergeJob) -> list[dict[str, Any]]:
    """What was read: names as others know them, sizes of files, and what became of the tensors."""
    labels = [job.base_model if model is plan.base else model.label for model in plan.models]
    return [
        {
            "model": label,
            "files": {str(name): size for name, size, _ in model.fingerprint},
            "tensors": account.to_dict(),
        }
        for label, model, account in zip(labels, plan.models, plan.accounts, strict=True)
    ]


def _streamed(commit: RepoCommit) -> dict[str, Any]:
    """What was read from the Hub without a copy here."""
    return {
        "repository": commit.repo,
        "revision": commit.revision,
        "commit": commit.commit,
        "bytes_read": commit.bytes_read,
        "requests": commit.traffic.requests,
    }


def _warnings(
    plan: MergePlan,
    job: MergeJob,
    result: StreamResult,
    fidelity: FidelityReport,
    non_finite: Mapping[str, NonFinite],
) -> list[str]:
    """A base of other weights is legitimate (a fine-tune is steered so), and worth knowing."""
    lines = {
        item.source.digest: (
            f"{item.source.label} was made over {item.source.base.model}, and {plan.base.label} has other weights of the "
            "same shapes"
        )
        for item in plan.directions
        if result.base_weights is not None and item.source.base.weights != result.base_weights
    }
    told = [found.told(name) for name, found in non_finite.items()]
    if len(told) > _TOLD_TENSORS:
        more = f"NaN or infinity in {len(told) - _TOLD_TENSORS} more tensors of the output: see non_finite in {REPORT_FILE}"
        told[_TOLD_TENSORS:] = [more]
    return [*job.warnings, *lines.values(), *([fidelity.warning] if fidelity.warning else []), *told]


def _versions() -> dict[str, str]:
    return {
        "wsmerge": importlib.metadata.version("wsmerge"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kernels": kernels_name(),
    }
