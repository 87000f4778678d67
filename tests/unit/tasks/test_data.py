"""Bad rows are named with their line, never with a traceback (promise 11)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_rows import GOOD, MALFORMED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.data.jsonl import LONGEST_LINE, Row, collect, scan


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _read(path: Path, **options: Any) -> list[Row]:
    return collect(path, lambda value, where: Row(int(where.rpartition(":")[2]), value), **options).items


def _refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        _read(path, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    bad, reason = MALFORMED[name]
    path = _write(tmp_path / "rows.jsonl", GOOD % 1 + b"\n" + GOOD % 3 + bad + b"\r\n" + GOOD % 5)
    message = _refused(path, required=("id", "text"))
    assert f"1 of 4 rows are bad: {path}:4: " in message
    assert reason in message
    assert "\n" not in message
    good = [row.line for row in scan(path, ("id", "text")) if isinstance(row, Row)]
    assert good == [1, 3, 5]


def test_rows_are_read_with_bom_crlf_blank_lines_and_no_last_newline(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"id": "a"}\r\n\r\n  \n{"id": "\\ud83d\\ude00\xc3\xa9"}')
    assert _read(path) == [Row(1, {"id": "a"}), Row(4, {"id": "😀é"})]


def test_ten_rows_are_named_when_twelve_are_bad(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", GOOD % 1 + b"oops\n" * 12)
    message = _refused(path)
    assert [f"{path}:{line}: " in message for line in range(1, 14)] == [False] + [True] * 10 + [False] * 2
    assert "and 2 more" in message


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_file_without_rows_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "holds no rows" in _refused(_write(tmp_path / "rows.jsonl", content))


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in _refused(tmp_path / "missing.jsonl")
    assert "cannot be read" in _refused(tmp_path)


@pytest.mark.parametrize(("bad", "passes"), [(1, True), (2, False)])
def test_skip_bears_one_bad_row_in_a_hundred(bad: int, passes: bool, tmp_path: Path) -> None:
    good = b"".join(GOOD % i for i in range(100 - bad))
    path = _write(tmp_path / "rows.jsonl", b"oops\n" * bad + good)
    if passes:
        found = collect(path, lambda row, where: row["id"], on_error="skip")
        assert (len(found.items), found.skipped) == (99, 1)
    else:
        assert "2 of 100 rows are bad" in _refused(path, on_error="skip")


def test_row_refused_by_the_task_is_named_beside_malformed_ones(tmp_path: Path) -> None:
    def parse(row: dict[str, Any], where: str) -> str:
        if row["id"] == "2":
            raise DataError(f"{where}: no tests", fix="add a test")
        return str(row["id"])

    path = _write(tmp_path / "rows.jsonl", GOOD % 1 + GOOD % 2 + b"oops\n")
    with pytest.raises(DataError) as caught:
        collect(path, parse)
    assert f"{path}:2: no tests, add a test; {path}:3: is not JSON" in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.text('{}[]":,\\u019eEinfNa -\n\r', max_size=80).map(str.encode)))
def test_random_bytes_give_rows_or_a_data_error(tmp_path: Path, noise: bytes) -> None:
    lines = noise.split(b"\n")
    path = _write(tmp_path / "noise.jsonl", noise)
    found = list(scan(path))
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    assert [row.line for row in found] == [n for n, line in enumerate(lines, 1) if line.strip()]
    for row in found:
        if isinstance(row, Row):
            assert json.loads(lines[row.line - 1]) == row.value
    if found and all(isinstance(row, Row) for row in found):
        assert _read(path) == found
    else:
        assert str(path) in _refused(path)


def test_longest_line_bears_a_large_row(tmp_path: Path) -> None:
    row = {"id": "x", "text": "a" * (LONGEST_LINE - 100)}
    assert _read(_write(tmp_path / "rows.jsonl", json.dumps(row).encode()))[0].value == row
