"""What the tests of several processes and of crashes run in processes of their own; each prints one JSON document.

Run as `python -m tests.registry.processes FUNCTION ARGUMENTS`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kills import kills
from wsmerge.errors import ConflictError, NotFoundError
from wsmerge.registry import Store, verify_direction


def write(root: str, source: str, versions: str, go: str) -> dict[str, str]:
    """Publish `source` as each of `versions`, once the file `go` is there; which of them this process won or lost."""
    store, results = Store(Path(root)), {}
    while not Path(go).exists():
        time.sleep(0.002)
    for version in versions.split(","):
        try:
            results[version] = store.publish(Path(source), version=version, aliases=("newest",)).version_digest
        except ConflictError:
            results[version] = "conflict"
    return results


def read(root: str, stop: str) -> dict[str, Any]:
    """Open and verify all that is in the store again and again, until the file `stop` is there."""
    store, opened = Store(Path(root)), 0
    problems: list[str] = []
    while not Path(stop).exists():
        for entry in store.list():
            with store.open(entry.label) as direction:
                problems += verify_direction(direction)
                opened += 1
        try:
            store.resolve("formal@newest")
        except NotFoundError as error:
            if opened and "no alias" not in str(error):
                problems.append(str(error))
    return {"opened": opened, "problems": problems}


def crash(folder: str, operation: str) -> list[dict[str, Any]]:
    """Do `operation` on a copy of a store, killed at its n-th step on the disk, for every n; what is left each time."""
    found: list[dict[str, Any]] = []
    root = Path(folder) / operation
    shutil.copytree(Path(folder) / "store", root)
    for step in kills(lambda: OPERATIONS[operation](Store(root), Path(folder))):
        found.append(_left(Store(root), operation, Path(folder)) | {"step": step})
        shutil.rmtree(root)
        shutil.copytree(Path(folder) / "store", root)
    return found


def publish(store: Store, folder: Path) -> None:
    store.publish(folder / "second", version="1.1.0", aliases=("good",))


def remove(store: Store, _folder: Path) -> None:
    store.remove("formal@1.0.0")


OPERATIONS: dict[str, Callable[[Store, Path], None]] = {"publish": publish, "remove": remove}


def _left(store: Store, operation: str, folder: Path) -> dict[str, Any]:
    """The state after a crash, after trying again, and after collecting garbage."""
    before = [str(version) for version in store.version_numbers("formal")]
    problems = list(store.verify().problems)
    try:
        OPERATIONS[operation](store, folder)
    except NotFoundError as error:
        problems += [] if operation == "remove" else [str(error)]
    after = [str(version) for version in store.version_numbers("formal")]
    aliases = {alias: str(entry.version) for entry in store.list() for alias in entry.aliases}
    actions = [(event.action, event.version, event.alias) for event in store.log("formal")]
    store.gc(dry_run=False, min_age_s=0)
    return {
        "before": before,
        "after": after,
        "aliases": aliases,
        "logged_twice": len(actions) != len(set(actions)),
        "problems": problems + list(store.verify().problems),
        "leftovers": len(list(store.paths.temporary.iterdir())),
    }


if __name__ == "__main__":
    functions: dict[str, Callable[..., Any]] = {"write": write, "read": read, "crash": crash}
    sys.stdout.write(json.dumps(functions[sys.argv[1]](*sys.argv[2:])))
