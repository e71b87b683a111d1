"""Turns a row of any layout into the one form that is tokenized: a conversation, or plain text."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Message = dict[str, str]

COLUMNS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "messages": ("messages", "system"),
    "sharegpt": ("conversations", "system"),
    "prompt-completion": ("prompt", "completion", "system"),
    "text": ("text",),
}
"""The columns that a format reads, by our names; ``data.columns`` renames them."""

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True)
class Conversation:
    """Messages with ``role`` and ``content``; those from index ``completion`` on are the row's answer."""

    messages: list[Message]
    completion: int


@dataclass(frozen=True)
class PlainText:
    """Text that no chat template touches; ``prompt`` is empty where all of it is to be learned."""

    prompt: str
    completion: str


Example = Conversation | PlainText


class RowError(Exception):
    """What is wrong with a row: the column (as the file names it) and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"{column}: {reason}")
        self.column = column
        self.reason = reason


class Columns:
    """A row's values under our names, with errors that speak of the file's."""

    def __init__(self, value: dict[str, Any], renames: dict[str, str]) -> None:
        self._value = value
        self._renames = renames

    def name(self, column: str) -> str:
        return self._renames.get(column, column)

    def get(self, column: str) -> Any:
        """The value, or None where it is missing or null."""
        return self._value.get(self.name(column))

    def error(self, column: str, reason: str) -> RowError:
        return RowError(self.name(column), reason)

    def required(self, column: str) -> Any:
        name = self.name(column)
        if name not in self._value:
            raise RowError(name, f"is missing; the row has {', '.join(map(str, self._value)) or 'no columns'}")
        if self._value[name] is None:
            raise RowError(name, "is null")
        return self._value[name]

    def text(self, column: str) -> str:
        """A required text that is more than white space."""
        value = self.required(column)
        if not isinstance(value, str):
            raise self.error(column, f"is {_kind(value)}, not text")
        if not value.strip():
            raise self.error(column, "is empty")
        return value

    def optional_text(self, column: str) -> str | None:
        """A text, or None where it is missing, null or empty."""
        value = self.get(column)
        if value is not None and not isinstance(value, str):
            raise self.error(column, f"is {_kind(value)}, not text")
        return value or None


def make_example(value: dict[str, Any], format: str, renames: dict[str, str], system: str | None) -> Example:
    """The row ``value`` in the layout ``format``; ``system`` is the prompt for conversations without one.

    Raises:
        RowError: a column is missing, of the wrong type or empty, or the turns are out of order.
    """
    columns = Columns(value, renames)
    if format == "text":
        return PlainText("", columns.text("text"))
    if format == "alpaca":
        return _from_alpaca(columns, system)
    if format == "messages":
        return finish_conversation(columns, "messages", read_messages(columns, "messages"), system)
    if format == "sharegpt":
        return finish_conversation(columns, "conversations", read_sharegpt(columns, "conversations"), system)
    if format == "prompt-completion":
        return _from_prompt_completion(columns, system)
    raise ValueError(f"no reader for the format {format}")


def read_messages(columns: Columns, column: str) -> list[Message]:
    """A list of ``{"role", "content"}``."""
    return _read_turns(columns, column, "role", "content", {role: role for role in ROLES})


def read_sharegpt(columns: Columns, column: str) -> list[Message]:
    """A list of ``{"from", "value"}``, in our roles."""
    return _read_turns(columns, column, "from", "value", SHAREGPT_ROLES)


def _read_turns(columns: Columns, column: str, role_key: str, content_key: str, roles: dict[str, str]) -> list[Message]:
    turns = columns.required(column)
    if not isinstance(turns, list):
        raise columns.error(column, f"is {_kind(turns)}, not a list of turns")
    if not turns:
        raise columns.error(column, "is empty")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise columns.error(column, f"turn {number} is {_kind(turn)}, not an object")
        for key in (role_key, content_key):
            if not isinstance(turn.get(key), str):
                state = "is missing" if turn.get(key) is None else f"is {_kind(turn[key])}, not text"
                raise columns.error(column, f'turn {number}: "{key}" {state}')
        if turn[role_key] not in roles:
            raise columns.error(column, f'turn {number}: unknown role "{turn[role_key]}"; known are {", ".join(roles)}')
        if not turn[content_key].strip():
            raise columns.error(column, f'turn {number}: "{content_key}" is empty')
        messages.append({"role": roles[turn[role_key]], "content": turn[content_key]})
    return messages


def _from_alpaca(columns: Columns, system: str | None) -> Conversation:
    # Alpaca joins its two parts by template; a chat model has a template of its own, so here they are one user turn.
    parts = [part for part in (columns.optional_text("instruction"), columns.optional_text("input")) if part]
    if not parts:
        columns.text("instruction")
    output = columns.text("output")
    messages: list[Message] = []
    for pair in columns.get("history") or []:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise columns.error("history", "is not a list of [question, answer]")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [{"role": "user", "content": "\n\n".join(parts)}, {"role": "assistant", "content": output}]
    return finish_conversation(columns, "output", messages, system)


def _from_prompt_completion(columns: Columns, system: str | None) -> Example:
    if isinstance(columns.get("prompt"), list):
        prompt, answer = read_messages(columns, "prompt"), read_messages(columns, "completion")
        conversation = finish_conversation(columns, "completion", prompt + answer, system)
        return Conversation(conversation.messages, len(conversation.messages) - len(answer))
    return PlainText(columns.text("prompt"), columns.text("completion"))


def finish_conversation(columns: Columns, column: str, messages: list[Message], system: str | None) -> Conversation:
    """Put the system prompt first, check the order of roles.

    Raises:
        RowError: they are out of order, or no assistant answers; named by ``column``.
    """
    if messages[0]["role"] != "system":
        system = columns.optional_text("system") or system
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
    turns = [message["role"] for message in messages]
    if turns[0] == "system":
        turns = turns[1:]
    if "assistant" not in turns:
        raise columns.error(column, "has no assistant turn")
    if turns[0] != "user":
        raise columns.error(column, f"starts with the {turns[0]}'s turn, not the user's")
    followers = {"user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"assistant", "tool"}, "system": set()}
    for before, after in pairwise(turns):
        if after not in followers[before]:
            raise columns.error(column, f"wrong order of roles: {after} after {before}")
    if turns[-1] != "assistant":
        raise columns.error(column, f"ends with the {turns[-1]}'s turn, which nothing answers")
    return Conversation(messages, len(messages) - 1)


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
