"""The tree that YAML text becomes: values that know their place."""

from dataclasses import dataclass

from launcher.errors import Problem, make_printable

from .scalars import Scalar

OVERRIDE = "override"
"""What stands for the file's name in the place of an override."""

Path = tuple[str | int, ...]
"""The keys, and in lists the indices, that lead to a value."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a value or key stands; ``line`` is None in an override."""

    file: str
    line: int | None
    col: int
    source_line: str

    def problem(self, key: str, message: str, hint: str | None = None) -> Problem:
        return Problem(
            file=self.file,
            line=self.line,
            col=self.col,
            key=key,
            message=message,
            hint=hint,
            source_line=self.source_line,
        )


@dataclass(kw_only=True)
class Node:
    """A value, or a section (dict) or list of nodes.

    ``place`` is where a message about the value points, ``key_place`` where its key stands; ``text`` is a scalar as
    it was written (never with an environment variable's value in it), ``quoted`` whether in quotes.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    place: Place
    key_place: Place
    text: str = ""
    quoted: bool = False
    from_env: bool = False


def find_node(root: Node, path: Path) -> tuple[Node, bool]:
    """The node at ``path`` and True, or the innermost one around it and False."""
    node = root
    for part in path:
        if isinstance(node.value, dict) and part in node.value:
            node = node.value[str(part)]
        elif isinstance(node.value, list) and str(part).isdecimal() and int(part) < len(node.value):
            node = node.value[int(part)]
        else:
            return node, False
    return node, True


def clip(text: str) -> str:
    """``text`` for a message: on one line, at most 60 characters."""
    text = make_printable(text)
    return text if len(text) <= 60 else f"{text[:57]}..."
