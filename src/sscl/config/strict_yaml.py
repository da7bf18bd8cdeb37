"""YAML as configs need it: words, numbers, lists, mappings, anchors and merge keys, all within bounds.

Anything else that YAML can say (tags, that name types; anchors that contain themselves; a page that unfolds to
gigabytes) is refused with its line before it is built. PyYAML's own scanner is used everywhere, never libyaml's, which
is not installed everywhere and accepts other texts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import yaml

from sscl.words import count

MOST_DEEP = 20  # mappings and lists within each other
MOST_VALUES = 20_000  # with what anchors and merge keys stand for: a second or two of PyYAML
LONGEST_TEXT = 4096  # characters, as of a path
LONGEST_NUMBER = 100  # characters; longer ones are text, and no setting takes 5,000 digits

_STR, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
# Control characters and halves of surrogate pairs, besides those that stand for bytes of file names (PEP 383).
_UNWRITABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")
_EXPONENT = r"(?:[eE][-+]?[0-9]+)"


class StrictLoader(yaml.SafeLoader):
    """SafeLoader within bounds. A key is the text that it is, and is given once.

    1e-4 is a number here, which YAML 1.1 calls a string. 2024-01-31, 1:30, 010, 0x1f and = are text, which it calls a
    date, 90, 8, 31 and a type: runs are named after dates, and nobody means the others.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._composed = 0
        self._extent: dict[int, tuple[int, int]] = {}  # by the node's id: values in it, and how deep they lie

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and all in it, counting."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._composed += 1
        self._level += 1
        if getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            raise _refused(event, f"the tag {tag} is not allowed; write the value alone")
        self._check(event, values=self._composed, depth=self._level)
        node: Any = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extent:
                raise _refused(event, f"*{event.anchor} stands for what it is a part of")
            self._check(event, values=1, depth=self._level + self._extent[id(node)][1])
        else:
            inner = [self._extent[id(one)] for one in _below(node)]
            extent = 1 + sum(values for values, _ in inner), 1 + max((depth for _, depth in inner), default=0)
            self._check(event, values=extent[0], depth=self._level)
            self._extent[id(node)] = extent
        return node

    def _check(self, event: Any, *, values: int, depth: int) -> None:
        if depth > MOST_DEEP:
            raise _refused(event, f"more than {MOST_DEEP} levels of lists and mappings")
        if values > MOST_VALUES:
            raise _refused(event, f"more than {count(MOST_VALUES, 'value')}, with all that anchors (*NAME) stand for")

    def compose_scalar_node(self, anchor: Any) -> Any:
        """Compose a word or number."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if len(event.value) > LONGEST_TEXT:
            raise _refused(event, f"a text of more than {count(LONGEST_TEXT, 'character')}")
        if found := _UNWRITABLE.search(event.value):
            raise _refused(event, f"a text contains the character U+{ord(found[0]):04X}, which cannot be written")
        return super().compose_scalar_node(anchor)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping; its keys become the texts that they are."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for i, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a key must be a word, got a list or mapping")
            if key.value in seen:
                raise _refused(key, f"key {key.value[:60]!r} is given twice")
            seen.add(key.value)
            if key.tag not in (_STR, _MERGE):
                text = yaml.ScalarNode(_STR, key.value, key.start_mark, key.end_mark, style=key.style)
                self._extent[id(text)] = self._extent[id(key)]
                node.value[i] = (text, value)
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the type of a plain word by its form."""
        if kind is yaml.ScalarNode and implicit[0] and len(value) > LONGEST_NUMBER:
            return _STR
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


class TextLoader(StrictLoader):
    """Reads every value as the text it is: a list of texts, as in `[001, 1e3]`."""


TextLoader.yaml_implicit_resolvers = {}
StrictLoader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, form) for tag, form in resolvers if tag.rpartition(":")[2] in ("bool", "merge", "null")])
}
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        rf"^(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*{_EXPONENT}?|{_EXPONENT})|\.[0-9][0-9_]*{_EXPONENT}?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


class _Refused(yaml.MarkedYAMLError):
    """What YAML allows and a config does not."""


def _refused(at: Any, problem: str) -> _Refused:
    return _Refused(problem=problem, problem_mark=at.start_mark)


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def read(text: str, *, loader: type[StrictLoader] = StrictLoader) -> Any:
    """Return what a text in YAML says; None of an empty text. No two places share a list or mapping.

    Raises:
        ValueError: not YAML, or more of it than a config needs; one line with the number of the text's line.
    """
    return _unshared(_parsed(text, loader))  # type: ignore[arg-type]


@lru_cache(maxsize=128)  # a run's configuration is read several times in one command, and takes 15 ms
def _parsed(text: str, loader: type[StrictLoader]) -> Any:
    reader = None
    try:
        reader = loader(text)
        return reader.get_single_data()
    except Exception as error:  # PyYAML raises IndexError, OverflowError, AttributeError, ... besides its own
        raise ValueError(_said(error, text, reader)) from error


def nodes(text: str) -> yaml.Node | None:
    """Return the nodes of a text that `read` has read; they know where they stand."""
    return yaml.compose(text, Loader=StrictLoader)


def _unshared(value: Any) -> Any:
    """Return a value with its own copy of what an anchor stands for: a change in one place is none elsewhere."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _said(error: Exception, text: str, reader: StrictLoader | None) -> str:
    """Return what is wrong with a text, after the number of its line."""
    if isinstance(error, yaml.reader.ReaderError):  # before there is a line
        line, problem = text.count("\n", 0, error.position), f"the character U+{error.character:04X}"
        return f"line {line + 1}: not valid YAML ({problem} is not allowed)"
    line = 0 if reader is None else reader.line
    problem = str(error) or type(error).__name__
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark is not None else line
        problem = error.problem or error.context or problem
    if isinstance(error, _Refused):
        return f"line {line + 1}: {problem}"
    cut = re.search("mapping values are not allowed|expected ',' or", problem)
    quote = "; quote a text with ': ' or ' #' in it" if cut else ""
    return f"line {line + 1}: not valid YAML ({' '.join(problem.split())[:200]}){quote}"
