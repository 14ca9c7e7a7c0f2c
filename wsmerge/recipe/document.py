"""YAML text as data that still knows the line of each of its parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar, Final

import yaml

from wsmerge.errors import RecipeError

__all__ = ["Document", "Duplicate", "Keys", "kind_of", "read_document", "read_documents", "spell"]

Keys = tuple[str | int, ...]

_TAG: Final = "tag:yaml.org,2002:"
_MARKER: Final = re.compile(r"^---(?=\s)", re.MULTILINE)
_MERGE: Final = f"{_TAG}merge"


def spell(keys: Keys) -> str:
    """A place in a recipe as its reader would write it: `directions[0].weight[1].value`."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return path.removeprefix(".")


def kind_of(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    """What `value` is, in the words of a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    kinds = {str: "text", Real: "a number", Mapping: "a mapping", Sequence: "a list"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A key that a mapping gives twice; of such, YAML silently keeps the last. Lines count from 1."""

    keys: Keys
    line: int
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One YAML document, or data that never was YAML.

    Attributes:
        value: the data: mappings, lists, text, numbers, booleans, None.
        name: how messages name its file; empty where it is none.
        root: the node that `value` was made from; None where it was not made from YAML.
        duplicates: every key that is given twice.
        text: the document's YAML verbatim, without the documents before and after it; empty where it was not YAML.
    """

    value: Any
    name: str = ""
    root: yaml.Node | None = None
    duplicates: tuple[Duplicate, ...] = ()
    text: str = ""

    def line(self, *keys: str | int) -> int:
        """The line, counted from 1, of the part at `keys` or, where there is none, of the innermost part around it."""
        if self.root is None:
            return 0
        node, mark = self.root, self.root.start_mark
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            node, mark = found
        return mark.line + 1

    def where(self, *keys: str | int) -> str:
        """The part at `keys` as messages name it: `recipe.yml:7: directions[0].weight`, without a line if not YAML."""
        return self.at(self.line(*keys), *keys)

    def at(self, line: int, *keys: str | int) -> str:
        """As `where`, for a line that is known."""
        path = spell(keys)
        if self.root is None:
            return path
        at = f"{self.name}:{line}" if self.name else f"line {line}"
        return f"{at}: {path}" if path else at


class _Loader(yaml.SafeLoader):
    """YAML's plain data and nothing else.

    `8:15` and `2024-01-01` stay text: YAML 1.1 reads the one as 495, in base 60, and the other as a date.
    """

    def _scalar(self, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - a number, a truth value or text
        kind = node.tag.rpartition(":")[2]
        if ":" in node.value:
            return node.value
        try:
            return getattr(self, f"construct_yaml_{kind}")(node)
        except (IndexError, KeyError, ValueError):  # `!!int many`, or more digits than Python reads
            return node.value

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
        f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
        f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
        f"{_TAG}timestamp": yaml.SafeLoader.construct_yaml_str,
        **dict.fromkeys((f"{_TAG}bool", f"{_TAG}float", f"{_TAG}int"), _scalar),
        None: yaml.SafeLoader.construct_undefined,
    }


def read_document(text: str, name: str = "") -> Document:
    """The one YAML document in `text`; `name` is how messages name its file.

    Raises:
        RecipeError: not YAML, nothing in it, or several documents; with the line.
    """
    first, *others = read_documents(text, name)
    if others:
        several = "several documents are a chain of merges; `wsmerge merge` and `load_recipes` take them all"
        raise _error(name, others[0].line(), "a second document begins, where one recipe is expected", several)
    return first


def read_documents(text: str, name: str = "") -> tuple[Document, ...]:
    """The YAML documents in `text`, at least one, without empty ones; `name` is how messages name their file.

    Raises:
        RecipeError: not YAML, or nothing in it; with the line.
    """
    try:
        loader = _Loader(text)
        nodes = [node for node in _nodes(loader) if node.tag != f"{_TAG}null"]
        if not nodes:
            needed = "it needs a merge_method with models or slices, or base_model and directions"
            raise _error(name, 1, "the recipe is empty", needed)
        texts = _split(text, [node.start_mark.index for node in nodes])
        # Duplicates first: the loader writes the keys of merges (`<<`) into the nodes.
        duplicates = [tuple(_duplicates(node)) for node in nodes]
        return tuple(
            Document(loader.construct_document(node), name, node, again, part)
            for node, again, part in zip(nodes, duplicates, texts, strict=True)
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "YAML is indented with spaces, never with tabs" if "\\t" in str(error.problem) else None
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise _error(name, mark.line + 1 if mark else 1, f"not YAML: {message}", hint) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(name, line, f"not YAML: the character {chr(error.character)!r} may not stand in it") from error
    except RecursionError as error:
        raise _error(name, 1, "not a recipe: nested too deeply") from error


def _error(name: str, line: int, message: str, hint: str | None = None) -> RecipeError:
    return RecipeError(message, where=f"{name}:{line}" if name else f"line {line}", hint=hint)


def _split(text: str, starts: list[int]) -> Iterator[str]:
    # Each document goes from the marker before it to that of the next; the first, with its comments, from the start.
    marks = [0, *(max(found.start() for found in _MARKER.finditer(text, 0, start)) for start in starts[1:]), len(text)]
    for first, end in pairwise(marks):
        part = text[first:end]
        yield _MARKER.sub("", part, count=1).removeprefix("\n") if first else part


def _nodes(loader: _Loader) -> Iterator[yaml.Node]:
    while loader.check_node():
        node = loader.get_node()
        if node is not None:
            yield node


def _duplicates(root: yaml.Node) -> Iterator[Duplicate]:
    # An alias is the node that it stands for, so a node seen before is not entered again (it may hold itself).
    seen: set[int] = set()
    waiting: list[tuple[Keys, yaml.Node]] = [((), root)]
    while waiting:
        keys, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [((*keys, index), item) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            first_lines: dict[str, int] = {}
            for key, item in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if key.tag != _MERGE and name in first_lines:
                    yield Duplicate((*keys, name), line, first_lines[name])
                first_lines.setdefault(name, line)
                waiting.append(((*keys, name), item))


def _child(node: yaml.Node, key: str | int) -> tuple[yaml.Node, yaml.Mark] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key].start_mark
    if isinstance(node, yaml.MappingNode):
        # From the end: the mapping's own keys come after those of a merge (`<<`), and override them.
        for name, item in reversed(node.value):
            if name.value == str(key):
                return item, name.start_mark
    return None
