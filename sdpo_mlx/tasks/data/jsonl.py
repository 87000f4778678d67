"""Read JSONL into checked rows: every bad row is named with its line, before a model is loaded.

A file is read line by line, so that one bad row hides no other; nothing in a row is trusted or executed.
Other sources of rows (an array, a table, a hub) are in `sources.py`.
Each task passes `collect` a function that converts a row of its format.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from sdpo_mlx.core.errors import DataError

LONGEST_LINE = 8_000_000  # bytes; a row near it is a mistake, or a file that isn't JSONL
NAMED = 10
SKIPPABLE = 0.01  # the share of bad rows that `on_error: skip` bears

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

OnError = Literal["stop", "skip"]
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One JSON object and the number of its line, counted from 1; `place` stands before it, if not `file:`."""

    line: int
    value: dict[str, Any]
    place: str = ""


@dataclass(frozen=True)
class BadRow:
    """A line that can't be used, and why."""

    line: int
    what: str
    place: str = ""


@dataclass(frozen=True)
class Collected(Generic[T]):
    """The rows of a file in order, and how many bad rows were skipped."""

    items: list[T]
    skipped: int


def read_jsonl(path: Path, on_error: OnError = "stop", required: Sequence[str] = ("id",)) -> list[Row]:
    """Return the rows of a file that hold the required fields and, where there is an `id`, one that is unique.

    Raises DataError naming the first ten bad rows as `file:line: what`; with `skip` only over 1 % of them.
    """
    return _settle(str(path), list(scan(path, required)), on_error).items


def collect(
    path: Path,
    parse: Callable[[dict[str, Any], str], T],
    on_error: OnError = "stop",
    required: Sequence[str] = ("id",),
) -> Collected[T]:
    """Like `read_jsonl`, with each row turned into what a task needs by `parse(row, "file:line")`.

    A DataError that `parse` raises makes a bad row, named and counted like any other.
    """
    return collect_from(scan(path, required), str(path), parse, on_error)


def collect_from(
    rows: Iterable[Row | BadRow], name: str, parse: Callable[[dict[str, Any], str], T], on_error: OnError = "stop"
) -> Collected[T]:
    """Like `collect`, for rows that are read already; `name` stands for a row's place where it has none."""
    return _settle(name, list(parse_rows(rows, name, parse)), on_error)


def parse_rows(
    rows: Iterable[Row | BadRow], name: str, parse: Callable[[dict[str, Any], str], T]
) -> Iterator[T | BadRow]:
    """Yield what `parse(row, where)` makes of each row, or a BadRow with its error."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        where = f"{row.place or f'{name}:'}{row.line}"
        try:
            yield parse(row.value, where)
        except DataError as error:
            part = error.where.removeprefix(where).strip(", ")  # such as "test 3" of this row
            details = (part, error.what.removeprefix(f"{where}: "), error.fix)
            yield BadRow(row.line, ", ".join(word for word in details if word), row.place)


def scan(path: Path, required: Sequence[str] = ("id",), longest: int = LONGEST_LINE) -> Iterator[Row | BadRow]:
    """Yield every line that isn't blank, good or bad, in order; a name that ends in `.gz` is unpacked on the way.

    `longest`: bytes of a line. Raises DataError if the file can't be read.
    """
    ids: dict[str, int] = {}
    for line, raw in _lines(path, longest):
        try:
            value = parsed(raw, longest)
            if not isinstance(value, dict):
                raise DataError(f"is not a JSON object but {kind_of(value)}")
            check_row(value, line, ids, required)
        except DataError as error:
            yield BadRow(line, error.what)
        else:
            yield Row(line, value)


def check_row(
    value: dict[str, Any], line: int, ids: dict[str, int], required: Sequence[str] = (), unit: str = "line"
) -> None:
    """Raises DataError if a required field is missing or an `id` is none, or not unique among `ids`."""
    _check_fields(value, required)
    _check_id(value, line, ids, unit)


def _settle(name: str, results: Sequence[T | BadRow], on_error: OnError) -> Collected[T]:
    bad = [result for result in results if isinstance(result, BadRow)]
    good = [result for result in results if not isinstance(result, BadRow)]
    if not results:
        raise DataError(f"{name}: holds no rows", fix="write one JSON object a line")
    if not bad or (on_error == "skip" and len(bad) <= SKIPPABLE * len(results)):
        return Collected(good, len(bad))
    named = "; ".join(f"{row.place or f'{name}:'}{row.line}: {row.what}" for row in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    fix = (
        "correct these rows"
        if on_error == "skip"
        else "correct these rows, or set task.on_error=skip to skip up to 1 %"
    )
    raise DataError(f"{len(bad)} of {len(results)} rows are bad: {named}{more}", fix=fix)


def opened(path: Path) -> io.BufferedIOBase:
    """Return the file's bytes, unpacked where its name ends in `.gz`."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """Line numbers and bytes of the lines that aren't blank; an overlong one arrives cut, and is never held whole."""
    try:
        with opened(path) as file:
            number = 0
            while raw := file.readline(longest + 1):
                number += 1
                rest = raw
                while len(rest) > longest and not rest.endswith(b"\n"):
                    rest = file.readline(longest + 1)
                raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if raw.strip():
                    yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}: is no whole gzip file", fix="pack or download it again") from None
    except OSError as error:
        hint = "name a file in it" if path.is_dir() else "check the path"
        raise DataError(f"{path}: cannot be read: {error.strerror}", fix=hint) from None


def parsed(raw: bytes, longest: int = LONGEST_LINE) -> Any:
    """The value of strict JSON: no NaN, no field twice, no broken text. Raises DataError saying what is wrong."""
    if len(raw) > longest:
        raise DataError(f"line is longer than {longest // 1_000_000} MB")
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
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"is not JSON: {error.msg} ({place})") from None
    except RecursionError:
        raise DataError("is nested too deep") from None
    except DataError:
        raise
    except ValueError:
        raise DataError("holds a number with too many digits") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise DataError(f"field {_shown(key)} occurs twice")
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


def _check_id(value: dict[str, Any], line: int, ids: dict[str, int], unit: str) -> None:
    if "id" not in value:
        return
    name = value["id"]
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise DataError(f"field 'id' must be text that isn't empty, or a whole number, not {kind_of(name)}")
    first = ids.setdefault(str(name), line)
    if first != line:
        raise DataError(f"id {_shown(str(name))} is already used in {unit} {first}")


def kind_of(value: object) -> str:
    """Return the kind of a JSON value in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "empty text" if value == "" else kinds.get(type(value), "a number")


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."
