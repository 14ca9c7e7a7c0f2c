"""A pytest plugin that puts wsmerge in the place of `mergekit.merge.run_merge`, and notes how each test ended.

The notes go to the JSON file that the environment variable MERGEKIT_SUITE_NOTES names: for each test its outcome, how
many merges of ours it ran, and the last line of its failure. With MERGEKIT_SUITE_SIDE=mergekit nothing is replaced; with
MERGEKIT_SUITE_BUGS=1 wsmerge reproduces mergekit's silent mistakes instead of refusing them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

_outcomes: dict[str, dict[str, Any]] = {}
_calls: dict[str, int] = {}


def pytest_configure() -> None:
    """Replace the function before the tests import it."""
    import mergekit.merge  # noqa: PLC0415 - seven seconds, and only where tests run

    theirs = mergekit.merge.run_merge
    if os.environ.get("MERGEKIT_SUITE_SIDE") == "mergekit":
        mergekit.merge.run_merge = _counted(theirs)
    else:
        mergekit.merge.run_merge = _counted(run_ours)


def _counted(function: Any) -> Any:  # noqa: ANN401 - mergekit ships no types
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        _calls[test] = _calls.get(test, 0) + 1
        return function(*args, **kwargs)

    return call


def run_ours(merge_config: Any, out_path: str, options: Any, config_source: str | None = None) -> None:  # noqa: ANN401
    """`mergekit.merge.run_merge`, by wsmerge; its arguments are mergekit's."""
    import wsmerge  # noqa: PLC0415 - after mergekit, whose tests these are

    settings = wsmerge.Settings(
        options=wsmerge.PlanOptions(max_shard_bytes=options.out_shard_size),
        numerics=wsmerge.Numerics(
            seed=options.random_seed or 0, mergekit_bugs=bool(os.environ.get("MERGEKIT_SUITE_BUGS"))
        ),
        leave=wsmerge.Leave(
            mix_architectures=options.allow_crimes,
            truncate_vocabulary=options.unsafe_truncate_embeddings,
            trust_remote_code=options.trust_remote_code,
        ),
    )
    text = (config_source or merge_config.to_yaml()) + "\n"
    out = Path(out_path)
    made = out.with_name(f"{out.name}.wsmerge")
    wsmerge.merge(text, made, settings=settings)
    # The tests make the output folder themselves; wsmerge makes its own or none.
    shutil.copytree(made, out, dirs_exist_ok=True)
    shutil.rmtree(made)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test; a failure or skip of any phase counts."""
    if report.when != "call" and report.passed:
        return
    lines = str(report.longrepr).strip().splitlines() if report.longrepr else []
    reason = next((line.removeprefix("E").strip() for line in reversed(lines) if line.startswith("E ")), "")
    _outcomes[report.nodeid] = {
        "outcome": report.outcome,
        "merges": _calls.get(report.nodeid, 0),
        "reason": reason or (lines[-1] if lines else ""),
    }


def pytest_sessionfinish() -> None:
    """Write the notes."""
    notes = os.environ.get("MERGEKIT_SUITE_NOTES")
    if notes:
        Path(notes).write_text(json.dumps(_outcomes, indent=2))
