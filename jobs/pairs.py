"""Makes the token rows of preference pairs, and batches of them."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from launcher.contract.spec import Data

from .data import (
    CHUNK,
    BadRow,
    PreparedData,
    TokenRows,
    check_columns,
    check_value,
    explain_no_loss,
    prepare_sources,
    render_checked,
)
from .errors import JobError
from .formats import RowError
from .masking import IGNORED, Rendered, encode
from .preference import COLUMNS, SIDES, make_pair
from .rows import Row


@dataclass(frozen=True)
class PairRows:
    """Pairs ready for the model: row ``i`` is ``chosen.ids[i]`` and ``rejected.ids[i]``, labels on the answer."""

    chosen: TokenRows = field(default_factory=TokenRows)
    rejected: TokenRows = field(default_factory=TokenRows)
    prompts: list[str] = field(default_factory=list)
    num_truncated: int = 0
    reference: NDArray[numpy.float64] | None = None
    """What the reference says to both sides: log-probabilities, float64, shape (rows, 2)."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Tokens of both sequences of each pair: int64, shape (rows,)."""
        return self.chosen.lengths + self.rejected.lengths

    @property
    def num_loss_tokens(self) -> int:
        return self.chosen.num_loss_tokens + self.rejected.num_loss_tokens

    def split_keys(self) -> list[Any]:
        """The prompts: a model that was trained on one answer to a prompt knows something of the other."""
        return list(self.prompts)

    def select(self, indices: list[int], num_truncated: int = 0) -> "PairRows":
        prompts = [self.prompts[index] for index in indices]
        return PairRows(self.chosen.select(indices), self.rejected.select(indices), prompts, num_truncated)

    def batch(self, indices: list[int], pad_token: int) -> dict[str, Any]:
        """The pairs as tensors, padded on the right: first all chosen sequences, then all rejected ones.

        ``input_ids``, ``attention_mask`` and ``completion_mask`` (the answer's tokens) are int64 of shape (2 * pairs,
        tokens), as TRL 1.16 has them; ``ref_chosen_logps`` and ``ref_rejected_logps``, where they are known, float32
        of shape (pairs,).
        """
        import torch

        sides = [side.examples(indices) for side in (self.chosen, self.rejected)]
        sequences = [example for side in sides for example in side]
        shape = (len(sequences), max(len(example["input_ids"]) for example in sequences))
        ids = torch.full(shape, pad_token)
        attention, completion = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        for number, example in enumerate(sequences):
            length = len(example["input_ids"])
            ids[number, :length] = torch.tensor(example["input_ids"])
            attention[number, :length] = 1
            completion[number, :length] = (torch.tensor(example["labels"]) != IGNORED).long()
        batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
        if self.reference is not None:
            known = torch.tensor(self.reference[indices], dtype=torch.float32)
            batch |= {"ref_chosen_logps": known[:, 0], "ref_rejected_logps": known[:, 1]}
        return batch


def prepare_pairs(data: Data, seed: int, tokenizer: Any) -> PreparedData[PairRows]:
    """Token pairs of the train and eval sources.

    Raises:
        JobError: a source cannot be read, rows are bad (and ``on_bad_row`` is ``fail``), or too few are left.
    """
    if data.format != "preference":
        raise JobError(f"data.format: {data.format} has no pairs; this stage reads preference")
    check_columns(data, COLUMNS)
    return prepare_sources(data, seed, lambda rows: _tokenize(rows, data, tokenizer))


def _tokenize(rows: list[Row], data: Data, tokenizer: Any) -> tuple[PairRows, list[BadRow]]:
    """The good rows as tokens, the bad ones by name; both in the order of ``rows``."""
    done, truncated = PairRows(), 0
    bad: list[BadRow] = []
    for start in range(0, len(rows), CHUNK):
        good: list[Row] = []
        rendered: list[tuple[Rendered, Rendered]] = []
        for row in rows[start : start + CHUNK]:
            try:
                pair = make_pair(check_value(row), data.columns, data.system)
                chosen, rejected = (render_checked(example, tokenizer, "completion", data) for example in pair)
            except RowError as error:
                bad.append(BadRow(row.file, row.number, error.column, error.reason))
            else:
                good.append(row)
                rendered.append((chosen, rejected))
        # Text and conversations may stand in one file; only text gets the tokenizer's own special tokens.
        encoded = [_encode([pair[side] for pair in rendered], tokenizer) for side in range(2)]
        for row, pair, *sides in zip(good, rendered, *encoded, strict=True):
            problem = _find_problem(sides, data)
            if problem is not None:
                bad.append(BadRow(row.file, row.number, *problem))
                continue
            truncated += any(len(ids) > data.max_length for ids, _ in sides)
            for rows_of, (ids, labels) in zip((done.chosen, done.rejected), sides, strict=True):
                rows_of.ids.append(ids[: data.max_length])
                rows_of.labels.append(labels[: data.max_length])
            done.prompts.append(pair[0].text[: pair[0].spans[0][0]])
    bad.sort(key=lambda item: (item.file, item.row))
    return replace(done, num_truncated=truncated), bad


def _encode(rendered: list[Rendered], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    if len({item.add_special_tokens for item in rendered}) < 2:
        return encode(rendered, tokenizer)
    return [pair for item in rendered for pair in encode([item], tokenizer)]


def _find_problem(sides: list[tuple[list[int], list[int]]], data: Data) -> tuple[str, str] | None:
    """Column and reason, where nothing can be learned from the two sides: their tokens, their labels."""
    for side, (ids, labels) in zip(SIDES, sides, strict=True):
        if all(label == IGNORED for label in labels[: data.max_length]):
            return data.columns.get(side, side), explain_no_loss(ids, labels, data)
    chosen, rejected = (ids for ids, _ in sides)
    if chosen[: data.max_length] == rejected[: data.max_length]:
        when = "" if chosen == rejected else f" once both are cut to max_length {data.max_length}"
        return data.columns.get("rejected", "rejected"), f"is equal to chosen{when}"
    return None
