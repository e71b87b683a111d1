"""Makes the token rows of a run: read, check, render, tokenize, truncate, split off the evaluation."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy
from numpy.typing import NDArray

from launcher.contract.spec import Data

from .errors import JobError
from .formats import COLUMNS, Conversation, Example, RowError, make_example
from .masking import IGNORED, Rendered, encode, render
from .rows import Row, read_rows

CHUNK = 1000
"""Rows that are rendered before one call of the tokenizer: bounds memory, and lets its threads work."""
SHOWN = 10
"""Bad rows that an error names."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be learned from, and why."""

    file: str
    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.column}: {self.reason}"


class Rows(Protocol):
    """What a run learns from: one item per row, a sequence or a pair of them."""

    @property
    def num_truncated(self) -> int: ...

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Tokens of each row: int64, shape (rows,)."""

    @property
    def num_loss_tokens(self) -> int: ...

    def __len__(self) -> int: ...

    def split_keys(self) -> list[Any]:
        """Rows of equal keys are never split between training and evaluation."""

    def select(self, indices: list[int], num_truncated: int = 0) -> Self: ...


R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class TokenRows:
    """Sequences ready for the model: ``ids[i]`` and ``labels[i]`` have equal length, at most ``max_length``."""

    ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    num_truncated: int = 0
    parts: list[list[int]] | None = None
    """Packed: the lengths of the rows that each sequence is made of."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Tokens of each sequence: int64, shape (rows,)."""
        return numpy.array([len(ids) for ids in self.ids], dtype=numpy.int64)

    @property
    def num_loss_tokens(self) -> int:
        return sum(label != IGNORED for labels in self.labels for label in labels)

    def split_keys(self) -> list[Any]:
        return [tuple(ids) for ids in self.ids]

    def select(self, indices: list[int], num_truncated: int = 0) -> "TokenRows":
        ids, labels = [self.ids[index] for index in indices], [self.labels[index] for index in indices]
        return TokenRows(ids, labels, num_truncated)

    def columns(self) -> dict[str, list[list[int]]]:
        """The columns that TRL takes as tokenized already."""
        columns = {"input_ids": self.ids, "labels": self.labels}
        return columns if self.parts is None else {**columns, "seq_lengths": self.parts}

    def examples(self, indices: list[int]) -> list[dict[str, list[int]]]:
        """Rows as a collator takes them."""
        return [{"input_ids": self.ids[index], "labels": self.labels[index]} for index in indices]


@dataclass(frozen=True)
class PreparedData(Generic[R]):
    """What a run trains on and is evaluated on; ``skipped`` are the bad rows of both."""

    train: R
    eval: R | None
    skipped: list[BadRow]
    num_eval_rows_in_train: int
    """Evaluation rows that are also trained on: only where the evaluation is a file of its own."""


def prepare_data(data: Data, loss_on: str, seed: int, tokenizer: Any) -> PreparedData[TokenRows]:
    """Token rows of the train and eval sources.

    Raises:
        JobError: a source cannot be read, rows are bad (and ``on_bad_row`` is ``fail``), or too few are left.
    """
    if data.format not in COLUMNS:
        raise JobError(f"data.format: {data.format} is not for this stage; it reads {', '.join(COLUMNS)}")
    check_columns(data, COLUMNS[data.format])
    return prepare_sources(data, seed, lambda rows: _tokenize(rows, data, loss_on, tokenizer))


def prepare_sources(data: Data, seed: int, tokenize: Callable[[list[Row]], tuple[R, list[BadRow]]]) -> PreparedData[R]:
    """Both sources through ``tokenize``, which gives the good rows and the bad ones.

    Raises:
        JobError: as :func:`prepare_data`.
    """
    train_rows = read_rows(data.train)
    if not train_rows:
        raise JobError(f"data.train: {data.train} has no rows")
    train, bad = tokenize(train_rows)
    _check_bad(bad, len(train_rows), len(train), "data.train", data.on_bad_row)
    if data.eval is None:
        return PreparedData(train, None, bad, 0)
    if isinstance(data.eval, str):
        eval_rows = read_rows(data.eval, ("validation", "test", "train"))
        held_out, bad_eval = tokenize(eval_rows)
        _check_bad(bad_eval, len(eval_rows), len(held_out), "data.eval", data.on_bad_row)
        seen = set(train.split_keys())
        return PreparedData(train, held_out, bad + bad_eval, sum(key in seen for key in held_out.split_keys()))
    train, held_out = split(train, data.eval, seed)
    return PreparedData(train, held_out, bad, 0)


def check_columns(data: Data, columns: Collection[str]) -> None:
    """Refuse renames of columns that the format does not have."""
    unknown = sorted(set(data.columns) - set(columns))
    if unknown:
        known = ", ".join(columns)
        raise JobError(f"data.columns: {', '.join(unknown)}: the format {data.format} reads the columns {known}")


def split(rows: R, fraction: float, seed: int) -> tuple[R, R]:
    """``rows`` without, then only, a seeded ``fraction`` (at least one row).

    Rows with equal keys (the tokens, or the prompt of a pair) go to the same side, so that nothing is evaluated that
    was trained on. A function of rows and seed alone: the same for every number of ranks.

    Raises:
        JobError: one side would be empty.
    """
    keys, wanted = rows.split_keys(), max(1, round(fraction * len(rows)))
    order = numpy.random.Generator(numpy.random.PCG64(seed)).permutation(len(rows))
    chosen = {keys[index] for index in order[:wanted].tolist()}
    held_out = [index for index, key in enumerate(keys) if key in chosen]
    rest = [index for index, key in enumerate(keys) if key not in chosen]
    if not rest:
        raise JobError(
            f"data.eval: {fraction} of {len(rows)} rows leaves none to train on; give more rows, a file, or null"
        )
    return rows.select(rest, rows.num_truncated), rows.select(held_out)


def pack(rows: TokenRows, max_length: int) -> TokenRows:
    """``rows`` joined into sequences of at most ``max_length`` tokens, none cut (best fit, longest first).

    The collator gives each row positions of its own, from which attention is kept within the row.
    """
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    packed = pack_dataset(Dataset.from_dict(rows.columns()), max_length, "bfd")
    return TokenRows(packed["input_ids"][:], packed["labels"][:], rows.num_truncated, packed["seq_lengths"][:])


def _tokenize(rows: list[Row], data: Data, loss_on: str, tokenizer: Any) -> tuple[TokenRows, list[BadRow]]:
    """The good rows as tokens, the bad ones by name; both in the order of ``rows``."""
    done = TokenRows()
    bad: list[BadRow] = []
    truncated = 0
    for start in range(0, len(rows), CHUNK):
        good, rendered = [], []
        for row in rows[start : start + CHUNK]:
            try:
                example = make_example(check_value(row), data.format, data.columns, data.system)
                rendered.append(render_checked(example, tokenizer, loss_on, data))
            except RowError as error:
                bad.append(BadRow(row.file, row.number, error.column, error.reason))
            else:
                good.append(row)
        for row, (ids, labels) in zip(good, encode(rendered, tokenizer), strict=True):
            kept = labels[: data.max_length]
            if all(label == IGNORED for label in kept):
                bad.append(BadRow(row.file, row.number, _answer_column(data), explain_no_loss(ids, labels, data)))
                continue
            truncated += len(ids) > data.max_length
            done.ids.append(ids[: data.max_length])
            done.labels.append(kept)
    bad.sort(key=lambda item: (item.file, item.row))
    return TokenRows(done.ids, done.labels, truncated), bad


def check_value(row: Row) -> dict[str, Any]:
    """The row's value.

    Raises:
        RowError: it has none.
    """
    if row.problem is not None:
        raise RowError("row", row.problem)
    return row.value


def render_checked(example: Example, tokenizer: Any, loss_on: str, data: Data) -> Rendered:
    """As :func:`jobs.masking.render`.

    Raises:
        JobError: a conversation, and the tokenizer has no chat template.
        RowError: as there.
    """
    if isinstance(example, Conversation) and tokenizer.chat_template is None:
        raise JobError(
            f"data.format: {data.format} needs a chat template, and the tokenizer of model.base has none; "
            "take a chat model, or set data.chat_template"
        )
    return render(example, tokenizer, loss_on)


def _answer_column(data: Data) -> str:
    """The file's column that holds what is to be learned."""
    column = {"alpaca": "output", "prompt-completion": "completion", "sharegpt": "conversations"}.get(data.format)
    column = column or data.format
    return data.columns.get(column, column)


def explain_no_loss(ids: list[int], labels: list[int], data: Data) -> str:
    """Why ``labels`` that are cut at ``max_length`` have none left that carries loss."""
    if all(label == IGNORED for label in labels):
        return "has no token to learn"
    before = next(index for index, label in enumerate(labels) if label != IGNORED)
    limit = f"data.max_length {data.max_length}"
    return f"nothing of it is left within {limit}: {before} of {len(ids)} tokens come before it"


def _check_bad(bad: list[BadRow], num_rows: int, num_good: int, key: str, on_bad_row: str) -> None:
    if bad and on_bad_row == "fail":
        lines = [str(row) for row in bad[:SHOWN]]
        if len(bad) > SHOWN:
            lines.append(f"... and {len(bad) - SHOWN} more")
        are = "is" if len(bad) == 1 else "are"
        remedy = "mend them, or set data.on_bad_row: skip to train without them"
        if not num_good:  # skipping them would leave nothing
            remedy = "mend them, or set data.format, data.columns or data.max_length to what the rows are"
        raise JobError(f"{key}: {len(bad)} of {num_rows} rows {are} bad\n  " + "\n  ".join(lines) + f"\n{remedy}")
    if not num_good:
        first = f"; the first: {bad[0]}" if bad else ""
        raise JobError(f"{key}: none of {num_rows} rows can be used{first}")
