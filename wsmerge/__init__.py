"""Behaviour directions in weight space: versioned artifacts, and a merge engine that composes them into checkpoints.

    import wsmerge

    direction = wsmerge.extract("formality", base=BASE, positive="plus/", negative="minus/")
    wsmerge.publish(direction)
    wsmerge.merge({"base_model": BASE, "directions": [{"direction": "formality", "weight": 1.5}]}, "formal-model/")
    with wsmerge.steer(model, {"formality": -1.0}):
        ...

Importing this package loads nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsmerge.api import (
        AnswerOptions,
        Answers,
        ChatOptions,
        Details,
        ExportReport,
        MonitorOptions,
        PushOptions,
        RecipePlan,
        Settings,
        SimilarityCallback,
        answers,
        chat,
        check_pairs,
        compose,
        convert,
        export_mergekit,
        export_peft,
        extract,
        lint,
        make_pairs,
        merge,
        monitor,
        open_direction,
        plan,
        publish,
        pull,
        pull_part,
        push,
        search_hub,
        similarity,
        steer,
        steerable,
        sweep,
        train,
    )
    from wsmerge.engine.merge import MergeReport
    from wsmerge.engine.merging.build import Leave
    from wsmerge.engine.numerics import Numerics
    from wsmerge.engine.plan import PlanOptions
    from wsmerge.errors import WsmergeError
    from wsmerge.registry import Direction, Store

__all__ = [
    "AnswerOptions",
    "Answers",
    "ChatOptions",
    "Details",
    "Direction",
    "ExportReport",
    "Leave",
    "MergeReport",
    "MonitorOptions",
    "Numerics",
    "PlanOptions",
    "PushOptions",
    "RecipePlan",
    "Settings",
    "SimilarityCallback",
    "Store",
    "WsmergeError",
    "answers",
    "chat",
    "check_pairs",
    "compose",
    "convert",
    "export_mergekit",
    "export_peft",
    "extract",
    "lint",
    "make_pairs",
    "merge",
    "monitor",
    "open_direction",
    "plan",
    "publish",
    "pull",
    "pull_part",
    "push",
    "search_hub",
    "similarity",
    "steer",
    "steerable",
    "sweep",
    "train",
]

_HOMES = {
    "Direction": "wsmerge.registry",
    "Leave": "wsmerge.engine.merging.build",
    "MergeReport": "wsmerge.engine.merge",
    "Numerics": "wsmerge.engine.numerics",
    "PlanOptions": "wsmerge.engine.plan",
    "Store": "wsmerge.registry",
    "WsmergeError": "wsmerge.errors",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "wsmerge.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
