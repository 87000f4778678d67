"""`sdpo data check`: every bad row by its line, no traceback whatever the bytes, and the right task for good rows."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from data_rows import GOOD, MALFORMED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sdpo_cli import main as cli

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.data.check import check_rows
from sdpo_mlx.tasks.registry import ROW_TASKS, row_parser

OWN = "./mine.py"  # rows with a prompt; the file itself is not opened
READERS = [*ROW_TASKS, OWN]
ASSETS = resources.files("sdpo_mlx").joinpath("assets")
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


GOOD_LINES = (GOOD % 1).count(b"\n")


def shipped(task: str) -> Path:
    return Path(str(ASSETS.joinpath(task, "problems.jsonl")))


def refusal(task: str, row: dict[str, Any]) -> str | None:
    """The line that refuses a row; None where it is taken. Anything but a DataError is let through."""
    try:
        row_parser(task)(row, "rows.jsonl:1")
    except DataError as error:
        return error.line()
    return None


@pytest.mark.parametrize("task", ROW_TASKS)
def test_the_shipped_rows_of_each_task_are_good_and_recognised(task: str) -> None:
    checked = check_rows(str(shipped(task)))
    assert (checked.task, checked.bad) == (task, ())
    assert checked.splits["train"] > checked.splits["held_out"] > 0


# These three are about fields that a row with a prompt need not have, and about a limit that files of tests surpass.
MALFORMED_ROWS = sorted(set(MALFORMED) - {"missing_id", "missing_field", "long_line"})


def test_there_are_enough_malformed_fixtures() -> None:
    assert len(MALFORMED_ROWS) >= 25


@pytest.mark.parametrize("name", MALFORMED_ROWS)
def test_a_malformed_row_is_named_with_its_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, reason = MALFORMED[name]
    good = [json.dumps({"id": n, "prompt": "hi"}).encode() for n in (1, 3, 5)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*good[:2], bad, good[2]]) + b"\n")
    assert cli.main(["data", "check", str(path), "--task", OWN, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [row["line"] for row in found["bad"]] == [3]
    assert reason in found["bad"][0]["what"]
    assert (found["ok"], found["rows"]) == (False, 4)


def test_every_bad_row_is_named_not_only_the_first_ten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD % 1 + b"oops\n" * 30)
    assert cli.main(["data", "check", str(path), "--task", OWN]) == 3
    said = capsys.readouterr().out
    assert [line for line in range(1, 40) if f"rows.jsonl:{line}: " in said] == list(range(1, 1 + GOOD_LINES + 30))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".csv"])
def test_random_bytes_end_in_one_line(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    assert cli.main(["data", "check", str(path)]) in (0, 3)


@pytest.mark.parametrize("task", READERS)
@settings(max_examples=80, deadline=None)
@given(row=st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_no_parser_raises_anything_but_a_data_error_for_random_rows(task: str, row: dict[str, Any]) -> None:
    assert refusal(task, row) is None or "rows.jsonl:1" in str(refusal(task, row))


@pytest.mark.parametrize("task", ROW_TASKS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_parser_raises_anything_but_a_data_error_for_damaged_rows(task: str, data: st.DataObject) -> None:
    lines = shipped(task).read_text(encoding="utf-8").splitlines()
    row = json.loads(data.draw(st.sampled_from(lines)))
    key = data.draw(st.sampled_from(sorted(row)))
    if data.draw(st.booleans()):
        del row[key]
    else:
        row[key] = data.draw(JSON)
    assert refusal(task, row) is None or "rows.jsonl:1" in str(refusal(task, row))


def test_rows_that_no_task_reads_are_told_their_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"apples": 1, "pears": 2}\n', encoding="utf-8")
    assert cli.main(["data", "check", str(path)]) == 3
    assert "fields apples, pears" in capsys.readouterr().err


def test_a_twin_id_is_named_with_the_line_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n{"id": "1", "prompt": "c"}\n')
    (found,) = check_rows(str(path), OWN).bad
    assert (found.line, found.what) == (3, "id '1' is already used in line 1")
