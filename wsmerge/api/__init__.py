"""The Python API: what each command does, as a function. This is where the rooms meet; none of them knows the others.

A reference names a direction: `name`, `name@1.2.0`, `name@alias`, `name@sha256:HEX`, or a path (`./folder`). References
are looked up in `store`, by default the user's own (`WSMERGE_HOME`, else the user's data folder).

Each name is loaded when it is first used: a merge without directions needs no registry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsmerge.api.answering import AnswerOptions, Answers, answers
    from wsmerge.api.chain import merge
    from wsmerge.api.convert import convert
    from wsmerge.api.directions import Details, compose, extract, open_direction, publish
    from wsmerge.api.export import ExportReport, export_mergekit, export_peft
    from wsmerge.api.hub import PushOptions, pull, pull_part, push, search_hub
    from wsmerge.api.linting import lint
    from wsmerge.api.monitoring import MonitorOptions, SimilarityCallback, monitor, similarity
    from wsmerge.api.recipes import RecipePlan, check_out, plan
    from wsmerge.api.settings import Settings
    from wsmerge.api.steering import steer, steerable
    from wsmerge.api.sweeping import ChatOptions, Conversation, chat, sweep
    from wsmerge.api.training import check_pairs, make_pairs, train

__all__ = [
    "AnswerOptions",
    "Answers",
    "ChatOptions",
    "Conversation",
    "Details",
    "ExportReport",
    "MonitorOptions",
    "PushOptions",
    "RecipePlan",
    "Settings",
    "SimilarityCallback",
    "answers",
    "chat",
    "check_out",
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
    "AnswerOptions": "answering",
    "Answers": "answering",
    "ChatOptions": "sweeping",
    "Conversation": "sweeping",
    "ExportReport": "export",
    "MonitorOptions": "monitoring",
    "PushOptions": "hub",
    "RecipePlan": "recipes",
    "Settings": "settings",
    "SimilarityCallback": "monitoring",
    "answers": "answering",
    "chat": "sweeping",
    "check_out": "recipes",
    "check_pairs": "training",
    "convert": "convert",
    "export_mergekit": "export",
    "export_peft": "export",
    "lint": "linting",
    "make_pairs": "training",
    "merge": "chain",
    "monitor": "monitoring",
    "plan": "recipes",
    "pull": "hub",
    "pull_part": "hub",
    "push": "hub",
    "search_hub": "hub",
    "similarity": "monitoring",
    "steer": "steering",
    "steerable": "steering",
    "sweep": "sweeping",
    "train": "training",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wsmerge.api.{_HOMES.get(name, 'directions')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
