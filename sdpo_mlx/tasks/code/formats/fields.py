"""What the readers of public layouts share: fields, halves, what fits, what an answer may use unimported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.formats.native import RESULTS_CAP

Test = dict[str, Any]
MOST_INPUT = 4_000_000  # characters of input that the tests of one problem may have together
# What contest judges have imported already. `pow` keeps its third argument.
CONTEST_IMPORTS = """\
import bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
from builtins import pow
"""


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that holds text. Raises DataError when it is missing, blank or of another type."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is missing or no text", where=where, fix=f"give the row a {name}")
    return value


def optional_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that may be missing or null. Raises DataError when it is no text."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name} is no text", where=where, fix="write text, or leave it out")
    return value or ""


def object_of(value: Any, name: str, where: str) -> dict[str, Any]:
    """A JSON object, or the text of one. Raises DataError."""
    found = loaded(value, name, where) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise DataError(f"{name} holds no JSON object", where=where, fix='write {"...": ...} as text')
    return found


def loaded(text: str, name: str, where: str) -> Any:
    """The value of a field that is JSON text. Raises DataError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it can't be read"
        raise DataError(f"{name} is not JSON: {reason}", where=where, fix="write JSON text") from None


def texts_of(value: Any, name: str, where: str) -> list[str]:
    """A list of texts; null and a missing field are an empty one. Raises DataError."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{name} is no list of texts", where=where, fix='write ["...", "..."]')
    return value


def name_of(row: Mapping[str, Any], names: Sequence[str], prefix: str, text: str) -> str:
    """An id: the first of these fields, else a digest of the problem's text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return f"{prefix}{value}"
    return prefix + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def halved(tests: Sequence[Test]) -> list[Test]:
    """The first half public (at least one test, and it alone decides where it is alone), the rest hidden."""
    public = max(1, len(tests) // 2)
    return [{**test, "public": index < public} for index, test in enumerate(tests)]


def fitting(tests: Sequence[Test], where: str) -> list[Test]:
    """The tests whose results can come back from one run and whose inputs aren't too long together, in order.

    As many as possible are kept, so the longest go first. Raises DataError when none can stay.
    """
    sizes = [2 * len(json.dumps(test.get("expected", test.get("output", "")))) + 200 for test in tests]
    order = sorted(range(len(tests)), key=lambda index: sizes[index])
    count = max((n for n in range(1, len(tests) + 1) if sizes[order[n - 1]] <= RESULTS_CAP // n), default=0)
    lengths = [len(json.dumps(test.get("args", test.get("input", "")))) for test in tests]
    kept, length = set[int](), 0
    for index in sorted(order[:count], key=lambda index: lengths[index]):
        length += lengths[index]
        if length > MOST_INPUT:
            break
        kept.add(index)
    if not kept:
        what = "no test is short enough to be run" if tests else "there are no tests"
        raise DataError(what, where=where, fix="leave the problem out")
    return [test for index, test in enumerate(tests) if index in kept]


def with_starter(statement: str, starter: str) -> str:
    """The statement and, where there is one, the code that an answer starts with."""
    if not starter.strip():
        return statement
    return f"{statement.rstrip()}\n\nYour program starts like this:\n\n```python\n{starter.rstrip()}\n```"


def split_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The row's own split in our words, if it names one that we know."""
    ours = {"train": "train", "test": "held_out", "validation": "held_out", "held_out": "held_out"}
    split = row.get("split")
    return {"split": ours[split]} if isinstance(split, str) and split in ours else {}
