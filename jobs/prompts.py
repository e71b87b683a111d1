"""Makes the token rows of prompts, which ppo answers itself."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from launcher.contract.spec import Data

from .data import BadRow, PreparedData, check_columns, check_value, prepare_sources
from .errors import JobError
from .formats import Columns, Message, RowError, read_messages
from .masking import apply_template
from .rows import Row

COLUMNS = ("prompt", "system")

Said = str | list[Message]
"""A prompt as the row has it: text, or the turns of a conversation."""


@dataclass(frozen=True)
class PromptRows:
    """Prompts ready for the model: ``ids[i]``, the generation prompt at their end, were made of ``said[i]``."""

    ids: list[list[int]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    num_truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Tokens of each prompt: int64, shape (rows,)."""
        return numpy.array([len(ids) for ids in self.ids], dtype=numpy.int64)

    @property
    def num_loss_tokens(self) -> int:
        return 0

    def split_keys(self) -> list[Any]:
        return [tuple(ids) for ids in self.ids]

    def select(self, indices: list[int], num_truncated: int = 0) -> "PromptRows":
        rows = PromptRows([self.ids[index] for index in indices], [self.said[index] for index in indices])
        return replace(rows, num_truncated=num_truncated)


def prepare_prompts(data: Data, max_new_tokens: int, seed: int, tokenizer: Any) -> PreparedData[PromptRows]:
    """Token prompts of the train and eval sources, each with room for ``max_new_tokens`` in ``data.max_length``.

    Nothing is cut: a prompt without its end asks something else.

    Raises:
        JobError: a source cannot be read, rows are bad (and ``on_bad_row`` is ``fail``), or too few are left.
    """
    if data.format != "prompt":
        raise JobError(f"data.format: {data.format} has no prompts to answer; this stage reads prompt")
    check_columns(data, COLUMNS)
    room = data.max_length - max_new_tokens
    return prepare_sources(data, seed, lambda rows: _tokenize(rows, data, room, tokenizer))


def as_messages(said: Said) -> list[Message]:
    """The conversation that a prompt is; text is what the user says."""
    return [{"role": "user", "content": said}] if isinstance(said, str) else said


def _tokenize(rows: list[Row], data: Data, room: int, tokenizer: Any) -> tuple[PromptRows, list[BadRow]]:
    done = PromptRows()
    bad: list[BadRow] = []
    for row in rows:
        try:
            said = _read_prompt(Columns(check_value(row), data.columns), data.system)
            ids = _encode(said, tokenizer)
        except RowError as error:
            bad.append(BadRow(row.file, row.number, error.column, error.reason))
            continue
        if len(ids) > room:
            reason = f"has {len(ids)} tokens; data.max_length without ppo.max_new_tokens leaves {room}"
            bad.append(BadRow(row.file, row.number, data.columns.get("prompt", "prompt"), reason))
            continue
        done.ids.append(ids)
        done.said.append(said)
    return done, bad


def _read_prompt(columns: Columns, system: str | None) -> Said:
    """Text stays text where no system prompt makes a conversation of it."""
    system = columns.optional_text("system") or system
    if not isinstance(columns.get("prompt"), list):
        text = columns.text("prompt")
        return [{"role": "system", "content": system}, *as_messages(text)] if system is not None else text
    messages = read_messages(columns, "prompt")
    if messages[-1]["role"] == "assistant":
        raise columns.error("prompt", "ends with the assistant's turn, which is what is to be written")
    if messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _encode(said: Said, tokenizer: Any) -> list[int]:
    """Tokens of a prompt; of a text with a tokenizer without chat template, its own."""
    if tokenizer.chat_template is None:
        if not isinstance(said, str):
            raise JobError("data: a conversation needs a chat template, and the tokenizer of model.base has none")
        return list(tokenizer(said)["input_ids"])
    text = apply_template(tokenizer, as_messages(said), add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
