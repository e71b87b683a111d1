"""The errors that a user sees; only the CLI turns them into text and an exit code."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SHOWN = 50
"""Problems that are printed; a file that is not a spec at all can have thousands."""
_WINDOW = 100


class TuneyardError(Exception):
    """Something that a user can understand and act on; shown without a traceback."""

    exit_code = 1


class RunFailed(TuneyardError):
    """The run itself failed."""

    exit_code = 1


class UserError(TuneyardError):
    """What was asked for cannot be done as it is written."""

    exit_code = 2


class ClusterError(TuneyardError):
    """The scheduler or a node did not do what it should."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, and its place: line and column from 1, or no line where an override is at fault.

    ``key`` is dotted and empty where the text as a whole is meant; ``source_line`` is the line as the user wrote it;
    ``meant`` has the dotted keys that an unknown one was probably meant to be, which are the hint where there is none.
    """

    file: str
    line: int | None
    col: int
    key: str
    message: str
    hint: str | None = None
    source_line: str = ""
    meant: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.col}"
        lines = [": ".join(filter(None, [make_printable(place), make_printable(self.key), self.message]))]
        if self.source_line.strip():
            lines += _point_at(self.source_line, self.col)
        hint = f"did you mean {' or '.join(self.meant)}?" if self.meant and not self.hint else self.hint
        if hint:
            lines.append(f"  hint: {hint}")
        return "\n".join(lines)


class SpecError(UserError):
    """Everything that is wrong with one spec or profile, in the order of its text."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        blocks = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            blocks.append(f"... and {len(self.problems) - MAX_SHOWN} more problems")
        return "\n".join(blocks)


def make_printable(text: str) -> str:
    """``text`` on one line with one character for one: what could move a terminal's cursor becomes a ``?``."""
    return "".join(" " if char == "\t" else char if char.isprintable() else "?" for char in text)


def _point_at(source_line: str, col: int) -> list[str]:
    """The line, or a window of a long one, and a caret under column ``col``."""
    line, index = make_printable(source_line), max(col - 1, 0)
    start = max(0, min(index - _WINDOW // 2, len(line) - _WINDOW))
    shown = line[start : start + _WINDOW]
    # East Asian wide characters take two cells of a terminal.
    cells = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in shown[: index - start])
    cells += max(0, index - start - len(shown))
    head, tail = "..." if start else "", "..." if start + _WINDOW < len(line) else ""
    return [f"    {head}{shown}{tail}", f"    {' ' * (len(head) + cells)}^"]
