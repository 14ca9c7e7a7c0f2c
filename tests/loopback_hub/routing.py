"""Routes: a method, the shape of a path, and the function that answers.

In a shape, `{name}` is one segment of the path and `{name...}` the rest of it; both arrive decoded, so that a
revision or a path may hold encoded slashes. `{repo}` is short for `{owner}/{name}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from tests.loopback_hub.wire import Answer, Call

__all__ = ["Handler", "Route", "Router"]

Handler = Callable[[Call], Answer]
_PLACE = re.compile(r"\\{(\w+)(\\\.\\\.\\\.)?\\}")


@dataclass(frozen=True)
class Route:
    """One entry of the table."""

    method: str
    shape: str
    answer: Handler

    def pattern(self) -> re.Pattern[str]:
        """The shape as a regular expression over an encoded path."""
        shape = re.escape(self.shape.replace("{repo}", "{owner}/{name}"))
        return re.compile(_PLACE.sub(lambda found: f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})", shape))


class Router:
    """Finds the route of a request; the first that fits answers."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(route, route.pattern()) for route in routes]

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        """The function that answers, and the parts of the path."""
        asked = "GET" if method == "HEAD" else method
        for route, pattern in self._routes:
            if route.method == asked and (found := pattern.fullmatch(path)):
                return route.answer, {name: unquote(value) for name, value in found.groupdict().items()}
        return None
