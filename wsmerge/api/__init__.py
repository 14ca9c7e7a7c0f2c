"""The Python API: what each command does, as a function. This is where the rooms meet; none of them knows the others.

A reference names a direction: `name`, `name@1.2.0`, `name@alias`, `name@sha256:HEX`, or a path (`./folder`). References
are looked up in `store`, by default the user's own (`WSMERGE_HOME`, else the user's data folder).
"""

from wsmerge.api.directions import Details, compose, extract, open_direction, publish
from wsmerge.api.recipes import RecipePlan, check_out, merge, plan
from wsmerge.api.steering import steer

__all__ = [
    "Details",
    "RecipePlan",
    "check_out",
    "compose",
    "extract",
    "merge",
    "open_direction",
    "plan",
    "publish",
    "steer",
]
