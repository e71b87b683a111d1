"""Data files of every kind, friendly and hostile."""

import json
from pathlib import Path

import pytest

from jobs.errors import JobError
from jobs.rows import read_rows
from tests.conftest import SHARED_DATA

ROWS = [{"instruction": "a", "output": "b\u2028c"}, {"instruction": "ä", "output": "d"}]


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_json_and_jsonl_with_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    array = write(tmp_path / "a.json", json.dumps(ROWS), "utf-8-sig")
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    jsonl = write(tmp_path / "b.jsonl", lines + "\r\n", "utf-8-sig")
    misnamed = write(tmp_path / "c.json", lines)
    for source in (array, jsonl, misnamed):
        rows = read_rows(source)
        assert [row.value for row in rows] == ROWS
        assert [(row.file, row.number) for row in rows] == [(source, 1), (source, 2)]


def test_csv_quotes_newlines_and_surplus_fields(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'instruction,output\r\n"a, ""b""","c\r\nd"\r\ne,f,g\r\n', "utf-8-sig")
    first, second = read_rows(source)
    assert first.value == {"instruction": 'a, "b"', "output": "c\r\nd"}
    assert (second.number, second.problem) == (2, "1 more fields than the header")


def test_text_is_a_row_per_line_that_is_not_empty(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.txt", "one\r\n\r\n two\n"))
    assert [(row.number, row.value) for row in rows] == [(1, {"text": "one"}), (3, {"text": " two"})]


def test_parquet_folder_and_list(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "z.parquet")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "README.md", "not data")
    write(tmp_path / "dataset_info.json", "{}")
    assert [row.value for row in read_rows(str(tmp_path))] == [ROWS[0], *ROWS]
    files = [str(tmp_path / "z.parquet"), str(tmp_path / "sub")]
    assert [row.value for row in read_rows(files)] == [*ROWS, ROWS[0]]


def test_a_broken_line_is_a_bad_row_of_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"text": \n[1]\n')
    good, torn, other = read_rows(source)
    assert good.problem is None
    assert torn.number == 3
    assert "not JSON" in str(torn.problem)
    assert other.problem == "a row is an object with columns, this is list"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1},', "not JSON"),
        ("a.jsonl", b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ("a.csv", b'a,b\n"x', "line 2"),
        ("a.parquet", b"no", "not a parquet file"),
        ("a.xlsx", b"", "data files end in"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=message) as caught:
        read_rows(str(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_file_is_not_looked_for_on_the_hub() -> None:
    for source in ("/no/such/file", "./nothing", "rows.jsonl"):
        with pytest.raises(JobError, match="no such file or folder"):
            read_rows(source)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real data is not here")
def test_real_files() -> None:
    assert len(read_rows(str(SHARED_DATA / "alpaca_zh_demo.json"))) == 1000
