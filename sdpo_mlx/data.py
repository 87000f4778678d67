"""JSONL in, checked rows out: every bad row is named with its line, before a model is loaded.

A file is read line by line, so that one bad row hides no other; nothing in a row is trusted or executed.
Formats of single tasks are theirs: they hand `collect` a function that turns a row into what they need.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from sdpo_mlx.errors import DataError

LONGEST_LINE = 8_000_000  # bytes; a row near it is a mistake, or a file that isn't JSONL
NAMED = 10
SKIPPABLE = 0.01  # the share of bad rows that `on_error: skip` bears

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

OnError = Literal["stop", "skip"]
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One JSON object and the number of its line, counted from 1."""

    line: int
    value: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A line that can't be used, and why."""

    line: int
    what: str


@dataclass(frozen=True)
class Collected(Generic[T]):
    """What a file gave, in its order, and how many bad rows were left out."""

    items: list[T]
    skipped: int


def read_jsonl(path: Path, on_error: OnError = "stop", required: Sequence[str] = ("id",)) -> list[Row]:
    """The rows of a file that hold the required fields and, where there is an `id`, one that is unique.

    Raises DataError naming the first ten bad rows as `file:line: what`; with `skip` only over 1 % of them.
    """
    return _settle(path, list(scan(path, required)), on_error).items


def collect(
    path: Path,
    parse: Callable[[dict[str, Any], str], T],
    on_error: OnError = "stop",
    required: Sequence[str] = ("id",),
) -> Collected[T]:
    """Like `read_jsonl`, with each row turned into what a task needs by `parse(row, "file:line")`.

    What `parse` raises as DataError is a bad row like any other: named and counted with the rest.
    """
    results: list[tuple[int, T] | BadRow] = []
    for row in scan(path, required):
        if isinstance(row, BadRow):
            results.append(row)
            continue
        where = f"{path}:{row.line}"
        try:
            results.append((row.line, parse(row.value, where)))
        except DataError as error:
            part = error.where.removeprefix(where).strip(", ")  # such as "test 3" of this row
            said = (part, error.what.removeprefix(f"{where}: "), error.fix)
            results.append(BadRow(row.line, ", ".join(word for word in said if word)))
    settled = _settle(path, results, on_error)
    return Collected([item for _, item in settled.items], settled.skipped)


def scan(path: Path, required: Sequence[str] = ("id",)) -> Iterator[Row | BadRow]:
    """Every line that isn't blank, good or bad, in order. Raises DataError when the file can't be read."""
    ids: dict[str, int] = {}
    for line, raw in _lines(path):
        try:
            value = _parsed(raw)
            _check_fields(value, required)
            _check_id(value, line, ids)
        except DataError as error:
            yield BadRow(line, error.what)
        else:
            yield Row(line, value)


def _settle(path: Path, results: Sequence[T | BadRow], on_error: OnError) -> Collected[T]:
    bad = [result for result in results if isinstance(result, BadRow)]
    good = [result for result in results if not isinstance(result, BadRow)]
    if not results:
        raise DataError(f"{path}: holds no rows", fix="write one JSON object a line")
    if not bad or (on_error == "skip" and len(bad) <= SKIPPABLE * len(results)):
        return Collected(good, len(bad))
    named = "; ".join(f"{path}:{row.line}: {row.what}" for row in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    fix = "mend these rows" if on_error == "skip" else "mend these rows, or set task.on_error=skip to bear up to 1 %"
    raise DataError(f"{len(bad)} of {len(results)} rows are bad: {named}{more}", fix=fix)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and bytes of the lines that aren't blank; an overlong one arrives cut, and is never held whole."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                rest = raw
                while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE + 1)
                raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", fix="check the path") from None


def _parsed(raw: bytes) -> dict[str, Any]:
    if len(raw) > LONGEST_LINE:
        raise DataError(f"line is longer than {LONGEST_LINE // 1_000_000} MB")
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite)
        if SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start + 1} of the line)") from None
    except UnicodeEncodeError:
        raise DataError("holds half a surrogate pair (\\ud800 to \\udfff)") from None
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError("is nested too deep") from None
    except DataError:
        raise
    except ValueError:
        raise DataError("holds a number with too many digits") from None
    if not isinstance(value, dict):
        raise DataError(f"is not a JSON object but {_kind(value)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise DataError(f"field {_shown(key)} stands twice")
        value[key] = item
    return value


def _not_finite(word: str) -> float:
    raise DataError(f"{word} is not a number that JSON knows")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(_shown(text))


def _check_fields(value: dict[str, Any], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in value]
    if missing:
        raise DataError(f"field {', '.join(map(_shown, missing))} is missing")


def _check_id(value: dict[str, Any], line: int, ids: dict[str, int]) -> None:
    if "id" not in value:
        return
    name = value["id"]
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise DataError(f"field 'id' must be text that isn't empty, or a whole number, not {_kind(name)}")
    first = ids.setdefault(str(name), line)
    if first != line:
        raise DataError(f"id {_shown(str(name))} stands already in line {first}")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "empty text" if value == "" else kinds.get(type(value), "a number")


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."
