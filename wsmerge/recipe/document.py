"""YAML text as data that still knows the line of each of its parts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import open_regular
from wsmerge.errors import RecipeError

__all__ = [
    "Document",
    "Duplicate",
    "Keys",
    "kind_of",
    "read_document",
    "read_documents",
    "read_text",
    "read_value",
    "spell",
]

Keys = tuple[str | int, ...]

_TAG: Final = "tag:yaml.org,2002:"
_MARKER: Final = re.compile(r"^---(?=\s)", re.MULTILINE)
_MERGE: Final = f"{_TAG}merge"
_LARGEST: Final = 1 << 22  # bytes, which PyYAML reads in seconds; a checkpoint given by mistake is not read whole
_MOST_BITS: Final = 4096
_MOST_VALUES: Final = 1 << 18  # with each alias and merge key (`<<`) counted as what it stands for


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
    """A key that a mapping gives twice; of such, YAML silently keeps the last. Lines count from 1.

    Attributes:
        places: everywhere that the mapping stands: where it is written, and where an alias or a merge key (`<<`) stands for it.
        line: of the later one.
        first: line of the earlier one.
    """

    places: tuple[Keys, ...]
    line: int
    first: int

    @property
    def told(self) -> str:
        """What a message says of it."""
        return f"given twice, first on line {self.first}"


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

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        """As of the class above; half a surrogate pair, which an escape can make, is no text."""
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if not node.value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise yaml.MarkedYAMLError(problem="half a surrogate pair is no text", problem_mark=node.start_mark)
        return node

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - a node or a number
        """PyYAML's, for as many nodes as a file of settings can have."""
        self._composed += 1
        if self._composed > _MOST_VALUES:
            raise _too_many("it has")
        return super().compose_node(parent, index)

    def _scalar(self, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - a number, a truth value or text
        kind = node.tag.rpartition(":")[2]
        if ":" in node.value:
            return node.value
        try:
            value = getattr(self, f"construct_yaml_{kind}")(node)
            # Python reads any number of hexadecimal, octal or binary digits, and then cannot show what it has read.
            return node.value if isinstance(value, int) and value.bit_length() > _MOST_BITS else value
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
    with _telling(text, name):
        loader = _Loader(text)
        nodes = [node for node in _nodes(loader) if node.tag != f"{_TAG}null"]
        if not nodes:
            needed = "it needs a merge_method with models or slices, or base_model and directions"
            raise _error(name, 1, "the recipe is empty", needed)
        texts = _split(text, [node.start_mark.index for node in nodes])
        # Duplicates first: the loader writes the keys of merges (`<<`) into the nodes.
        duplicates = [_duplicates(node) for node in nodes]
        return tuple(
            Document(loader.construct_document(node), name, node, again, part)
            for node, again, part in zip(nodes, duplicates, texts, strict=True)
        )


def read_value(text: str, name: str = "") -> Any:  # noqa: ANN401 - whatever the YAML holds
    """The data of the one YAML document in `text`, None where it is empty; for files that are no recipes.

    Raises:
        RecipeError: not YAML, several documents, or keys given twice; with their lines.
    """
    with _telling(text, name):
        loader = _Loader(text)
        nodes = list(_nodes(loader))
        if len(nodes) > 1:
            raise _error(name, nodes[1].start_mark.line + 1, "a second document begins, where one is expected")
        if not nodes:
            return None
        again = Document(None, name, nodes[0], _duplicates(nodes[0]))
        value = loader.construct_document(nodes[0])
    if again.duplicates:
        lines = tuple(f"{again.at(one.line, *one.places[0])}: {one.told}" for one in again.duplicates)
        raise RecipeError("keys are given twice", where=name or None, details=lines)
    return value


def read_text(path: Path) -> str:
    """The text of a file of settings (UTF-8).

    Raises:
        RecipeError: it cannot be read, is too large to be one, or is no text.
    """
    try:
        with os.fdopen(open_regular(path, pipe=True), "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
    refuse_lfs_pointer(data, str(path), RecipeError)
    if len(data) > _LARGEST:
        raise RecipeError("too large for a recipe", where=str(path), hint="name the recipe, not the checkpoint")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte {data[error.start]:#04x} is not UTF-8"
        raise RecipeError(message, where=f"{path}:{line}", hint="save it as UTF-8") from error


@contextmanager
def _telling(text: str, name: str) -> Iterator[None]:
    """Turn what PyYAML raises about `text` into errors with a line of the file `name`."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "YAML is indented with spaces, never with tabs" if "\\t" in str(error.problem) else None
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise _error(name, mark.line + 1 if mark else 1, f"not YAML: {message}", hint) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(name, line, f"not YAML: the character {chr(error.character)!r} may not stand in it") from error
    except RecursionError as error:
        raise _error(name, 1, "nested too deeply") from error


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
            if _expanded(node, {}) > _MOST_VALUES:
                raise _too_many("its aliases make")
            yield node


def _too_many(what: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(
        problem=f"{what} more than {_MOST_VALUES:,} values, and no file of settings needs as many"
    )


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values that a node stands for, those of its aliases counted each time."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1  # of a node that holds itself
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def _duplicates(root: yaml.Node) -> tuple[Duplicate, ...]:
    found: dict[tuple[int, int], dict[Keys, None]] = {}
    _note_duplicates(root, (), (), found)
    return tuple(Duplicate(tuple(places), *lines) for lines, places in found.items())


def _note_duplicates(
    node: yaml.Node, keys: Keys, above: tuple[yaml.Node, ...], found: dict[tuple[int, int], dict[Keys, None]]
) -> None:
    """Note the places of every key that is given twice, by its line and the first one's; a node may hold itself."""
    if node in above:
        return
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_duplicates(item, (*keys, index), above, found)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, item in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if key.tag == _MERGE:
                merged = item.value if isinstance(item, yaml.SequenceNode) else [item]
                for part in merged:
                    _note_duplicates(part, keys, above, found)
                continue
            if name in first_lines:
                found.setdefault((line, first_lines[name]), {})[*keys, name] = None
            first_lines.setdefault(name, line)
            _note_duplicates(item, (*keys, name), above, found)


def _child(node: yaml.Node, key: str | int) -> tuple[yaml.Node, yaml.Mark] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key].start_mark
    if isinstance(node, yaml.MappingNode):
        # From the end: the mapping's own keys come after those of a merge (`<<`), and override them.
        for name, item in reversed(node.value):
            if name.value == str(key):
                return item, name.start_mark
    return None
