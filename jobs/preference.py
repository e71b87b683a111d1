"""Turns a preference row of any layout into two examples, the chosen and the rejected, that answer one prompt."""

import re
from typing import Any

from .formats import (
    Columns,
    Conversation,
    Example,
    Message,
    PlainText,
    finish_conversation,
    read_messages,
    read_sharegpt,
)

COLUMNS = ("prompt", "conversations", "chosen", "rejected", "system")
"""The columns that are read, by our names; ``data.columns`` renames them."""
SIDES = ("chosen", "rejected")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
# "\n\nHuman: ... \n\nAssistant: ...", as in Anthropic's hh-rlhf.
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def make_pair(value: dict[str, Any], renames: dict[str, str], system: str | None) -> tuple[Example, Example]:
    """The chosen and the rejected example of the row ``value``.

    Which layout it is, its columns say: prompt turns under ``conversations`` (each side is then one turn, as in
    ShareGPT), a ``prompt`` of text or messages, or no prompt at all, where both sides are whole dialogues (messages,
    or text of "Human:" and "Assistant:" turns) that begin alike.

    Raises:
        RowError: a column is missing, of the wrong type or empty, the sides are equal or answer no common prompt.
    """
    columns = Columns(value, renames)
    for side in SIDES:
        columns.required(side)
    if columns.get("chosen") == columns.get("rejected"):
        raise columns.error("rejected", "is equal to chosen")
    if columns.get("conversations") is not None:
        prompt = read_sharegpt(columns, "conversations")
        chosen, rejected = (prompt + read_sharegpt(_as_list(columns, side), side) for side in SIDES)
        return _finish(columns, chosen, rejected, len(prompt), system)
    prompt = columns.get("prompt")
    if isinstance(prompt, list):
        turns = read_messages(columns, "prompt")
        chosen, rejected = (turns + _read_answer(columns, side) for side in SIDES)
        return _finish(columns, chosen, rejected, len(turns), system)
    if isinstance(columns.get("chosen"), list):
        chosen, rejected = (read_messages(columns, side) for side in SIDES)
        if prompt is not None and chosen[0]["role"] == rejected[0]["role"] == "assistant":
            user: Message = {"role": "user", "content": columns.text("prompt")}
            return _finish(columns, [user, *chosen], [user, *rejected], 1, system)
        return _finish(columns, chosen, rejected, _count_common(columns, chosen, rejected), system)
    if prompt is not None:
        return _make_plain(columns)
    chosen, rejected = (_read_dialogue(columns, side) for side in SIDES)
    return _finish(columns, chosen, rejected, _count_common(columns, chosen, rejected), system)


def _make_plain(columns: Columns) -> tuple[PlainText, PlainText]:
    prompt, chosen, rejected = columns.text("prompt"), columns.text("chosen"), columns.text("rejected")
    return PlainText(prompt, chosen), PlainText(prompt, rejected)


def _read_answer(columns: Columns, side: str) -> list[Message]:
    """The turns of an answer; text is one turn."""
    if isinstance(columns.get(side), str):
        return [{"role": "assistant", "content": columns.text(side)}]
    return read_messages(_as_list(columns, side), side)


def _as_list(columns: Columns, side: str) -> Columns:
    """``columns`` with a side that is one turn as a list of it."""
    turn = columns.get(side)
    return Columns({columns.name(side): [turn]}, {side: columns.name(side)}) if isinstance(turn, dict) else columns


def _read_dialogue(columns: Columns, side: str) -> list[Message]:
    """Text of "Human:" and "Assistant:" turns as messages."""
    head, *parts = _TURN.split(columns.text(side))
    if head.strip() or not parts:
        raise columns.error(
            side, 'does not start with "Human:", and there is neither a prompt nor a conversations column'
        )
    messages: list[Message] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if not text.strip():
            raise columns.error(side, f"turn {len(messages) + 1} ({speaker}) is empty")
        messages.append({"role": SPEAKERS[speaker], "content": text.strip()})
    return messages


def _count_common(columns: Columns, chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both dialogues begin with: their prompt."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(rejected) or common == len(chosen):
        if len(chosen) == len(rejected):
            raise columns.error("rejected", "is equal to chosen")
        short, long = ("rejected", "chosen") if common == len(rejected) else ("chosen", "rejected")
        raise columns.error(short, f"is only the beginning of {long}")
    role = next((side[common]["role"] for side in (chosen, rejected) if side[common]["role"] != "assistant"), None)
    if common == 0 or role is not None:
        raise columns.error("rejected", f"answers another prompt than chosen: turn {common + 1} differs")
    return common


def _finish(
    columns: Columns, chosen: list[Message], rejected: list[Message], prompt: int, system: str | None
) -> tuple[Conversation, Conversation]:
    """Two conversations whose answers begin after ``prompt`` turns, with the system prompt, their roles in order."""
    if chosen == rejected:
        raise columns.error("rejected", "is equal to chosen")
    done = []
    for side, messages in zip(SIDES, (chosen, rejected), strict=True):
        conversation = finish_conversation(columns, side, messages, system)
        shift = len(conversation.messages) - len(messages)  # the system prompt that was put first
        done.append(Conversation(conversation.messages, prompt + shift))
    return done[0], done[1]
