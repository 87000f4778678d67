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


def collect(
    path: Path,
    parse: Callable[[dict[str, Any], str], T],
    on_error: OnError = "stop",
    required: Sequence[str] = ("id",),
) -> Collected[T]:
    """Return the rows of a file, each converted by `parse(row, "file:line")`; an `id` must be unique.

    Raises DataError naming the first ten bad rows as `file:line: what`; with `skip` only over 1 % of them.
    A DataError that `parse` raises makes a bad row like any other.
    """
    return collect_from(scan(path, required), str(path), parse, on_error)


def collect_from(
    rows: Iterable[Row | BadRow], name: str, parse: Callable[[dict[str, Any], str], T], on_error: OnError = "stop"
) -> Collected[T]:
    """Like `collect`, for rows that are read already; `name` stands for a row's place where it has none."""
    results = list(parse_rows(rows, name, parse))
    bad = [result for result in results if isinstance(result, BadRow)]
    good = [result for result in results if not isinstance(result, BadRow)]
    if not results:
        raise DataError(f"{name}: holds no rows", fix="write one JSON object a line")
    if not bad or (on_error == "skip" and len(bad) <= SKIPPABLE * len(results)):
        return Collected(good, len(bad))
    named = "; ".join(f"{row.place or f'{name}:'}{row.line}: {row.what}" for row in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    fix = "correct these rows" + (", or set task.on_error=skip to skip up to 1 %" if on_error == "stop" else "")
    raise DataError(f"{len(bad)} of {len(results)} rows are bad: {named}{more}", fix=fix)


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

    def value(raw: bytes) -> dict[str, Any]:
        found = parsed(raw, longest)
        if not isinstance(found, dict):
            raise DataError(f"is not a JSON object but {kind_of(found)}")
        return found

    return checked_rows(_lines(path, longest), value, required=required)


def checked_rows(
    numbered: Iterable[tuple[int, T]],
    read: Callable[[T], dict[str, Any]],
    place: str = "",
    *,
    required: Sequence[str] = (),
    unit: str = "line",
) -> Iterator[Row | BadRow]:
    """Yield a Row with what `read` makes of each raw value, or a BadRow if it or its fields raise DataError."""
    ids: dict[str, int] = {}
    for number, raw in numbered:
        try:
            value = read(raw)
            missing = [name for name in required if name not in value]
            if missing:
                raise DataError(f"field {', '.join(map(_shown, missing))} is missing")
            name = value.get("id", number)
            if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
                raise DataError(f"field 'id' must be text that isn't empty, or a whole number, not {kind_of(name)}")
            first = ids.setdefault(str(name), number) if "id" in value else number
            if first != number:
                raise DataError(f"id {_shown(str(name))} is already used in {unit} {first}")
        except DataError as error:
            yield BadRow(number, error.what, place)
        else:
            yield Row(number, value, place)


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


def kind_of(value: object) -> str:
    """Return the kind of a JSON value in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "empty text" if value == "" else kinds.get(type(value), "a number")


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."
