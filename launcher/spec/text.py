"""Reads YAML text into a tree in which every value knows its place; what a spec never needs is refused.

ruamel's parser gives events (YAML 1.2, one token at a time), and the tree is built here rather than by its
constructors: no tag is ever looked up, no alias expanded, and depth and size are bounded before anything is built.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import Problem, SpecError

from .scalars import read_scalar
from .tree import OVERRIDE, Node, Place, clip

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
MAX_DEPTH = 32

# What YAML calls printable (https://yaml.org/spec/1.2.2/#51-character-set), less U+FEFF inside the text.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_UNSAFE_IN_VALUE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_NEVER_CLOSED = re.compile(r"end of stream|document separator|got '<stream end>'")
_LINE_BREAK = re.compile(r"\r\n|\n|\r")

# What ruamel says -> what it means here. The first text that occurs in its message is taken.
_WORDS = (
    ("character '\\t'", "a tab", "YAML indents with spaces; replace the tab"),
    ("that cannot start any token", "a character that cannot start a value", "put the value in quotes"),
    (
        "mapping values are not allowed",
        "a colon where none can be",
        "quote text with a colon; check the indent and the line before",
    ),
    ("could not find expected ':'", "a line that is not `key: value`", "put a space after the colon"),
    ("end of stream", "a quote that is never closed", "close the quote"),
    ("document separator", "a quote that is never closed", "close the quote"),
    ("unknown escape character", "a backslash that means nothing here", "use single quotes, or double the backslash"),
    ("escape sequence", "an escape that is cut short", "use single quotes, or double the backslash"),
    ("expected ',' or ']'", "a list without its end, or a comma", "check the brackets; quote text with [ ] { }"),
    ("expected ',' or '}'", "a section without its end, or a comma", "check the braces; quote text with { }"),
    ("expected <block end>", "a line that does not fit the ones above it", "check its indent and its quotes"),
    ("sequence entries are not allowed", "a list item where none can be", "check its indent"),
    ("undefined tag handle", "a tag (!...)", "remove the tag; a value that begins with ! needs quotes"),
    ("while scanning a tag", "a tag (!...)", "remove the tag; a value that begins with ! needs quotes"),
    ("directive", "a directive (%...)", "remove the line"),
    ("<document start>", "a directive (%...), or text where a key should be", "remove the line, or write `key: value`"),
)


def read_text(path: Path) -> str:
    """The text of a spec or profile: UTF-8, a byte-order mark left out.

    Raises:
        SpecError: it cannot be read, is too large or is not text.
    """
    top = Place(file=str(path), line=1, col=1, source_line="")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([top.problem("", f"cannot be read: {reason}", "name a YAML file that exists")]) from None
    if len(data) > MAX_BYTES:
        message = f"is larger than {MAX_BYTES:,} bytes"
        raise SpecError([top.problem("", message, "this is no spec; rows belong in the files of data.train")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = _LINE_BREAK.split(data[: error.start].decode("utf-8-sig", "replace"))
        place = Place(file=str(path), line=len(before), col=len(before[-1]) + 1, source_line=before[-1])
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8"
        raise SpecError([place.problem("", message, "save the file as UTF-8")]) from None


def parse_text(text: str, file: str) -> tuple[Node, list[Problem]]:
    """The tree of a whole file, whose top level must be a section, and what in it is refused.

    Raises:
        SpecError: the text cannot be followed to its end; the problems up to there come with it.
    """
    reader = _Reader(text, file)
    root = reader.read()
    if root.value is None and not root.text:
        root.value = {}  # an empty file: what is missing is said key by key
    if not isinstance(root.value, dict):
        what = "a list" if isinstance(root.value, list) else "a single value"
        message = f"expected `key: value` lines at the top level, got {what}"
        raise SpecError([*reader.problems, root.place.problem("", message, "start from `tuneyard init sft`")])
    # What is missing at the top level is missing nowhere in particular.
    root.key_place = Place(file=file, line=1, col=1, source_line="")
    return root, reader.problems


def parse_value(override: str, start: int) -> Node:
    """The value of an override ``a.b=value``: the YAML scalar or flow collection in ``override[start:]``.

    Raises:
        SpecError: it is neither.
    """
    reader = _Reader(override[start:], OVERRIDE, override, start)
    root = reader.read()
    if not reader.problems and reader.end < len(override[start:].rstrip()):
        place = reader.place_at(0, reader.end)
        message = "the rest of the value would be lost"
        hint = "put the value in double quotes inside the shell's quotes"
        reader.problems.append(place.problem(reader.path, message, hint))
    if reader.problems:
        raise SpecError(reader.problems)
    return root


@dataclass
class _Reader:
    """Builds the tree from the parser's events; ``override`` is the whole argument whose value ``text`` is."""

    text: str
    file: str
    override: str | None = None
    offset: int = 0
    problems: list[Problem] = field(default_factory=list)
    end: int = 0
    _num_values: int = 0

    @property
    def path(self) -> str:
        """The key that an override is for."""
        return self.override[: self.offset - 1] if self.override else ""

    def __post_init__(self) -> None:
        self._lines = _LINE_BREAK.split(self.text)

    def read(self) -> Node:
        if match := _UNPRINTABLE.search(self.text):
            before = _LINE_BREAK.split(self.text[: match.start()])
            place = self.place_at(len(before) - 1, len(before[-1]))
            message = f"the character U+{ord(match[0]):04X} cannot stand in YAML"
            raise SpecError([place.problem("", message, "remove it; this may not be a text file")])
        events = self._events()
        next(events)  # the start of the stream
        event = next(events)
        kind = type(event).__name__
        if kind == "StreamEndEvent":
            place = self.place_at(0, 0)
            return Node(value=None, place=place, key_place=place)
        if self.override is not None and event.explicit:
            self._report(event, self.path, "a document's start (---)", "put the value in quotes")
        if event.version or event.tags:
            self._report(event, "", "a directive (%...)", "remove the line")
        root = self._node(next(events), events, self.path)
        next(events)  # the end of the document
        event = next(events)
        if type(event).__name__ != "StreamEndEvent":
            self._report(event, "", "a second document", "keep one document; remove what follows `---`")
        return root

    def place_at(self, line: int, column: int) -> Place:
        """The place of a mark, whose line and column count from 0."""
        if self.override is not None:
            # Values of several lines are rare enough that their caret points at the first one.
            col = self.offset + column if line == 0 else self.offset
            return Place(file=OVERRIDE, line=None, col=col + 1, source_line=self.override)
        source = self._lines[line] if line < len(self._lines) else ""
        return Place(file=self.file, line=line + 1, col=column + 1, source_line=source)

    def _events(self) -> Iterator[Any]:
        from ruamel.yaml import YAML

        events = YAML(typ="safe", pure=True).parse(self.text)
        line, column = 0, 0
        while True:
            try:
                event = next(events)
            except StopIteration:
                return
            except Exception as error:
                # Not only YAMLError: on hostile text the parser runs into UnicodeEncodeError and others of its own.
                marks = [getattr(error, name, None) for name in ("problem_mark", "context_mark")]
                if _NEVER_CLOSED.search(str(getattr(error, "problem", ""))):
                    marks.reverse()  # missed where the text ends, at fault where it starts
                mark = marks[0] or marks[1]
                place = self.place_at(mark.line, mark.column) if mark else self.place_at(line, column)
                raise SpecError([*self.problems, place.problem(self.path, *_reword(error))]) from None
            line, column = event.start_mark.line, event.start_mark.column
            yield event

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int = 1, key: Node | None = None) -> Node:
        place = self.place_at(event.start_mark.line, event.start_mark.column)
        key_place = key.place if key else place
        kind = type(event).__name__
        self._num_values += 1
        if self._num_values > MAX_VALUES or depth > MAX_DEPTH:
            many = f"{MAX_VALUES:,} values" if self._num_values > MAX_VALUES else f"{MAX_DEPTH} levels of nesting"
            problem = place.problem("", f"more than {many}", "this is no spec; rows belong in the files of data.train")
            raise SpecError([*self.problems, problem])
        if kind == "AliasEvent":
            self._report(event, path, "an alias (*...)", "write the value out; a value that begins with * needs quotes")
            return Node(value=None, place=place, key_place=key_place)
        if event.anchor is not None:
            self._report(event, path, "an anchor (&...)", "remove it; a value that begins with & needs quotes")
        if event.ctag is not None:
            self._report(event, path, "a tag (!...)", "remove the tag; a value that begins with ! needs quotes")
        if kind == "MappingStartEvent":
            return Node(value=self._section(events, path, depth), place=place, key_place=key_place)
        if kind == "SequenceStartEvent":
            items: list[Node] = []
            while type(event := next(events)).__name__ != "SequenceEndEvent":
                items.append(self._node(event, events, f"{path}.{len(items)}", depth + 1))
            self.end = event.end_mark.index
            return Node(value=items, place=place, key_place=key_place)
        self.end = event.end_mark.index
        return self._scalar(event, path, place, key_place)

    def _section(self, events: Iterator[Any], path: str, depth: int) -> dict[str, Node]:
        section: dict[str, Node] = {}
        while type(event := next(events)).__name__ != "MappingEndEvent":
            key = self._node(event, events, path, depth + 1)
            name = key.value
            value = self._node(next(events), events, f"{path}.{key.text}".lstrip("."), depth + 1, key)
            if not isinstance(name, str):
                shown = f"the key {clip(key.text)}" if key.text else "a list or section as a key"
                self.problems.append(key.place.problem(path, f"{shown} is not text", "put the key in quotes"))
            elif name in section:
                first = section[name].key_place
                where = f"line {first.line}, column {first.col}" if first.line else f"column {first.col}"
                message = f"the key stands twice, first at {where}"
                self.problems.append(key.place.problem(f"{path}.{name}".lstrip("."), message, "keep one of them"))
            else:
                section[name] = value
        self.end = event.end_mark.index
        return section

    def _scalar(self, event: Any, path: str, place: Place, key_place: Place) -> Node:
        text, quoted = event.value, not event.implicit[0]
        if not text and not quoted:
            place = key_place  # `key:` with nothing after it: the parser's mark is on a later line
        node = Node(value=text, place=place, key_place=key_place, text=text, quoted=quoted)
        if _UNSAFE_IN_VALUE.search(text):
            self._report(event, path, "a control character", "remove the escape")
        elif not quoted:
            try:
                node.value = read_scalar(text)
            except ValueError:
                message = f"{clip(text)} is not a finite number"
                self.problems.append(place.problem(path, message, "write a finite number, or quote it if it is text"))
        return node

    def _report(self, event: Any, path: str, what: str, hint: str) -> None:
        place = self.place_at(event.start_mark.line, event.start_mark.column)
        self.problems.append(place.problem(path, f"{what} cannot stand here", hint))


def _reword(error: Exception) -> tuple[str, str]:
    said = str(error)
    for text, words, hint in _WORDS:
        if text in said:
            return f"not YAML: {words}", hint
    return "not YAML", "check this line and the one before it"
