"""Run mergekit's own end-to-end tests with its `run_merge` replaced by ours.

    python experiments/mergekit_suite/run.py CHECKOUT [--newer FOLDER] [--tests NAME ...]

CHECKOUT is a checkout of mergekit's repository (its `tests/common.py` is in no package). The tests of the version that
is installed may be newer than a checkout's: `--newer` takes the unpacked source package, whose test files then win.
The tests are copied to a temporary folder and run twice, by mergekit and by wsmerge. Printed: every test that
runs a merge, and how it ended on each side; the exit status is 1 where one that passes with mergekit fails with wsmerge.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = (
    "test_basic_merges.py",
    "test_tokenizer.py",
    "test_chat_template.py",
    "test_merge_dtypes.py",
    "test_vocabulary_axis.py",
    "test_embedding_truncation.py",
)


def main() -> int:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="mergekit's repository")
    parser.add_argument("--newer", type=Path, default=None, help="the unpacked source package of the installed version")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="test files to run")
    parser.add_argument("--mergekit-bugs", action="store_true", help="run wsmerge with --mergekit-bugs")
    arguments = parser.parse_args()
    os.environ["MERGEKIT_SUITE_BUGS"] = "1" if arguments.mergekit_bugs else ""
    with tempfile.TemporaryDirectory(prefix="mergekit-suite-") as folder:
        work = Path(folder)
        for source in (arguments.checkout, arguments.newer):
            if source is not None:
                shutil.copytree(source / "tests", work / "tests", dirs_exist_ok=True)
        if not (work / "tests/common.py").is_file():
            parser.error(f"{arguments.checkout} has no tests/common.py: give a checkout of the repository")
        (work / "tests/__init__.py").touch()
        files = [f"tests/{name}" for name in arguments.tests if (work / "tests" / name).is_file()]
        theirs = outcomes(work, files, "mergekit")
        ours = outcomes(work, files, "wsmerge")
    return report(theirs, ours)


def outcomes(work: Path, files: list[str], side: str) -> dict[str, dict[str, Any]]:
    """How each test of `files` ended: `{test: {outcome, merges, reason}}`."""
    notes = work / f"{side}.json"
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent), str(work)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    environment |= {"MERGEKIT_SUITE_SIDE": side, "MERGEKIT_SUITE_NOTES": str(notes)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "swap", "-p", "no:cacheprovider", *files]
    finished = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - fixed program
    if not notes.is_file():
        raise SystemExit(f"the tests did not run:\n{finished.stdout[-4000:]}{finished.stderr[-4000:]}")
    found: dict[str, dict[str, Any]] = json.loads(notes.read_text())
    return found


def report(theirs: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]) -> int:
    """Print every test that merges, then the sums. Returns the exit status."""
    merging = [name for name in theirs if theirs[name]["merges"] or ours.get(name, {}).get("merges")]
    worse = []
    for name in merging:
        mine = ours.get(name, {"outcome": "not run", "reason": ""})
        print(f"{mine['outcome']:8} (mergekit: {theirs[name]['outcome']})  {name.removeprefix('tests/')}")
        if mine["outcome"] != "passed":
            print(f"           {mine['reason'][:200]}")
            if theirs[name]["outcome"] == "passed":
                worse.append(name)
    passed = sum(ours.get(name, {}).get("outcome") == "passed" for name in merging)
    print(
        f"\n{passed} of {len(merging)} tests that run a merge pass with wsmerge; {len(worse)} fail that pass with mergekit;"
    )
    print(f"{len(theirs) - len(merging)} other tests of these files run no merge and say nothing about wsmerge.")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
