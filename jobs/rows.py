"""Reads a data source (file, files, folder or hub id) into rows that remember their file and number."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import JobError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
METADATA_NAMES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What the datasets library leaves beside the rows."""


@dataclass(frozen=True)
class Row:
    """One row as it lies in its file.

    ``number`` counts from 1: the line in JSONL and text, else the row (a CSV's header is not one). ``problem`` says
    why there is no value to look at (a JSONL line that is not JSON).
    """

    file: str
    number: int
    value: dict[str, Any]
    problem: str | None = None


def read_rows(source: str | list[str], splits: tuple[str, ...] = ("train",)) -> list[Row]:
    """All rows of ``source``, in order; of a hub dataset the first of ``splits`` that it has.

    Raises:
        JobError: nothing is there, or a file as a whole cannot be read.
    """
    if isinstance(source, list):
        return [row for item in source for row in read_rows(item, splits)]
    path = Path(source)
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and file.name not in METADATA_NAMES and not file.name.startswith(".")
        )
        if not files:
            raise JobError(f"{source}: no file in this folder ends in {', '.join(SUFFIXES)}")
        return [row for file in files for row in _read_file(file)]
    if path.exists():
        return list(_read_file(path))
    if source.startswith(("/", ".", "~")) or path.suffix.lower() in SUFFIXES:
        raise JobError(f"{source}: no such file or folder")
    return list(_read_hub(source, splits))


def _read_file(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise JobError(f"{path}: data files end in {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        return _read_parquet(path)
    try:
        # utf-8-sig drops a byte-order mark where there is one; newline="" leaves CRLF to the readers below.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from error
    if suffix == ".csv":
        return _read_csv(path, text)
    if suffix == ".txt":
        return _read_text(path, text)
    if suffix == ".json" and text.lstrip()[:1] == "[":
        return _read_json(path, text)
    return _read_jsonl(path, text)


def _read_json(path: Path, text: str) -> Iterator[Row]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise JobError(f"{path}: not JSON: {error}") from error
    for number, value in enumerate(values, start=1):
        yield _check(str(path), number, value)


def _read_jsonl(path: Path, text: str) -> Iterator[Row]:
    # split at newlines only: str.splitlines() also splits at U+2028 and others, which JSON text may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            yield Row(str(path), number, {}, f"not JSON: {error}")
            continue
        yield _check(str(path), number, value)


def _read_csv(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, value in enumerate(reader, start=1):
            surplus = value.pop(None, None)
            problem = f"{len(surplus)} more fields than the header" if surplus else None
            yield Row(str(path), number, value, problem)
    except csv.Error as error:
        raise JobError(f"{path}: line {reader.reader.line_num}: {error}") from error


def _read_text(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Row(str(path), number, {"text": line.rstrip("\r")})


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        values = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise JobError(f"{path}: not a parquet file: {error}") from error
    for number, value in enumerate(values, start=1):
        yield Row(str(path), number, value)


def _read_hub(name: str, splits: tuple[str, ...]) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises a dozen kinds: connection, missing, gated, script, ...
        raise JobError(f"{name}: no such file, and as a dataset of the hub it does not load: {error}") from error
    split = next((split for split in splits if split in loaded), None)
    if split is None:
        raise JobError(f"{name}: has the splits {', '.join(loaded)}, none of {', '.join(splits)}")
    for number, value in enumerate(loaded[split], start=1):
        yield Row(f"{name}:{split}", number, value)


def _check(file: str, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(file, number, {}, f"a row is an object with columns, this is {type(value).__name__}")
    return Row(file, number, value)
