"""Every class of transformers that can be built small, by six recipes: `make test-architectures`.

No part of `make test`, which collects files named `test_*`. Variables: `ARCH` limits the run to classes whose name it is
found in; `RESUME=1` takes over what an earlier run found (`build/architectures.jsonl`). A run over all classes writes
`docs/architectures.md`; one that is interrupted tells what is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch
import transformers

from tests.architectures.cells import MERGES, RECIPES, Cell, Sources, UnsoundError, asked_once, judge
from tests.architectures.report import Result, Results, report
from tests.architectures.tiny import classes, tiny_config, tiny_model

_ROOT: Final = Path(__file__).parents[2]
_RESULTS: Final = Results(_ROOT / "build" / "architectures.jsonl")
_ALL: Final = list(classes())
_ASKED: Final = [item for item in _ALL if re.search(os.environ.get("ARCH", ""), item[2])]
_MOST_PARAMETERS: Final = 2_500_000

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _page() -> Iterator[None]:
    """Starts a new file of results, unless resuming; ends with the page, where every class has a result."""
    if not os.environ.get("RESUME"):
        _RESULTS.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    found = _RESULTS.read()
    if not os.environ.get("ARCH"):
        done = [found[name] for _, _, name in _ALL if name in found]
        not_run = [name for _, _, name in _ALL if name not in found]
        page = _ROOT / "docs" / "architectures.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(report(done, not_run), encoding="utf-8")


@pytest.mark.parametrize(("kind", "model_type", "name"), _ASKED, ids=[item[2] for item in _ASKED])
def test_each_recipe_is_right_or_refused(kind, model_type, name, tmp_path):
    result = _RESULTS.read().get(name) if os.environ.get("RESUME") else None
    if result is None:
        result = _result(kind, model_type, name, tmp_path)
        _RESULTS.add(result)
    if result.not_built:
        pytest.skip(result.not_built)
    assert result.faults == []


def _result(kind: str, model_type: str, name: str, folder: Path) -> Result:
    try:
        config = tiny_config(model_type, name)
        with torch.device("meta"):
            count = sum(item.numel() for item in getattr(transformers, name)(config).parameters())
        if count > _MOST_PARAMETERS:
            return Result(kind, name, "stays too large")
        sources = Sources.of(name, tiny_model(name, config, seed=0), folder)
    except ImportError as error:
        found = re.search(r"requires the (\w+) library", str(error))
        return Result(kind, name, f"needs {found[1]}" if found else "needs a further package")
    except UnsoundError as error:
        return Result(kind, name, f"transformers does not load what it saves: {error}")
    except Exception as error:  # noqa: BLE001 - configuration classes refuse small sizes in many ways
        return Result(kind, name, f"no small configuration found ({type(error).__name__})")
    cells: dict[str, Cell] = {}
    with asked_once():
        for recipe in RECIPES:
            # Where mergekit loses tensors of a single model, or cannot stack its layers, it is asked no more of the kind.
            first = cells.get("identity" if recipe in MERGES else "stack")
            cells[recipe] = judge(sources, recipe, folder, theirs_too=first is None or first.mergekit == "sound")
    return Result(kind, name, cells=cells)
