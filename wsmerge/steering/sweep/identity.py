"""What decides the figures of a sweep, as one digest: a journal of another digest is another sweep's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.files import file_sha256
from wsmerge.errors import UsageError
from wsmerge.steering.facts import CONDITIONS
from wsmerge.steering.judging.config import FREE_OF_SCORES
from wsmerge.steering.stamps import file_sizes
from wsmerge.steering.sweep.config import Controls, SweepConfig

__all__ = ["sweep_digest"]

# Which strengths are measured and what is picked decide no figure, nor does how a judge is reached.
_FREE = {"k", "pick", "test", "evaluation", "controls"}
_FREE_OF_MEASURES = {"__all__": {"answers": {"score": {"judge": {*FREE_OF_SCORES}}}}}


def sweep_digest(config: SweepConfig, folder: Path, directions: Mapping[str, str], models: Mapping[str, Path]) -> str:
    """SHA-256 over the settings, the content of the files of items, the directions and the models' files.

    Args:
        config: the sweep file.
        folder: what its paths are relative to.
        directions: version digest of each direction.
        models: checkpoint folders; of their files names and sizes count, since reading them all takes long.

    Raises:
        UsageError: a file that cannot be read.
    """
    free: dict[str, Any] = {**dict.fromkeys(_FREE, True), "measures": _FREE_OF_MEASURES}
    settings = config.model_dump(mode="json", by_alias=True, exclude=free)
    settings["methods"] = [
        {key: value for key, value in method.items() if key not in _FREE} for method in settings["methods"]
    ]
    for measure in settings["measures"].values():
        # Journals from before some could be left out do not name them.
        if measure["hints"] is not None and measure["hints"]["conditions"] == [*CONDITIONS]:
            del measure["hints"]["conditions"]
    return sha256_hex(
        canonical_json(
            {
                "settings": settings,
                "controls": config.controls and _controls(config.controls),
                "files": {name: _sha256(folder / name) for name in sorted(set(_files(config)))},
                "directions": dict(directions),
                "models": {name: file_sizes(path) for name, path in models.items()},
            }
        )
    )


def _controls(controls: Controls) -> dict[str, Any]:
    # Of several kinds the labels say which is which; of one they do not.
    unnamed = {"kind": "subspaces"} if controls.kinds == ("subspaces",) else {}
    return {"seed": controls.seed, "text": controls.text, **unnamed}


def _files(config: SweepConfig) -> Iterator[str]:
    for method in config.methods:
        if method.pairs is not None:
            yield method.pairs
    for measure in config.measures.values():
        for part in (measure.choice, measure.hints, measure.answers, measure.perplexity):
            if part is not None:
                yield from (part.validation, part.test)
        if measure.hints is not None and measure.hints.wordings is not None:
            yield measure.hints.wordings
    if config.controls is not None and config.controls.text is not None:
        yield config.controls.text


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
