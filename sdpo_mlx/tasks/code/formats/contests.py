"""Contest formats: tests are inputs and outputs of programs, or arguments and values of one function.

Fields as published; nothing of a row is executed.

Each set's tests are compared as its own judge compares them (`equality` in `compare.py`), with its imports, recursion
limit and limits of time and memory: 6 s a test and 4 GB for LiveCodeBench, 4 s a test for APPS and TACO, whose judge
sets no memory (4 GB here). Stricter in one thing: APPS' judge also takes the words of a line, and the lines, for sets.

- LiveCodeBench v1 to v6 (`livecodebench/code_generation`, `..._lite`): `question_content`, `starter_code`,
  `public_test_cases` (JSON text), `private_test_cases` (JSON text, or packed: see `livecodebench_tests.py`), each
  `{"input", "output", "testtype": "stdin" | "functional"}`; `metadata` (JSON text) may hold `func_name`.
  A functional input is one JSON value a line, its output one JSON value.
- APPS and TACO: `question`, `input_output` (JSON text: `inputs`, `outputs`, and `fn_name` for functions),
  `starter_code`, `difficulty`. Many rows wrap a function's value in a list of one: both forms are right, as
  in the judges of these sets, unless the starter code says that it gives a list.
- The SDPO authors' rows (`lasgroup/SDPO`, `data/preprocess.py`): `data_source`, `prompt` (messages),
  `reward_model: {"style": "code", "ground_truth": tests}`, `extra_info: {"split", "index", ...}`; or as
  before that step: `kind`, `prompt` (text), `tests`, `idx`. Tests are JSON text: `inputs`, `outputs`,
  `testtype` (`stdin`, `functional` or `code`), `fn_name`. They build them from private tests only and train on
  a random half of these, all of which give feedback and decide (`half_tests.py`); otherwise only the first half is
  quoted here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.formats.livecodebench_tests import PackedError, unpacked_text
from sdpo_mlx.tasks.code.formats.native import Test, fitting, halved, problem_from_row, public_split
from sdpo_mlx.tasks.code.half_tests import HELD_OUT
from sdpo_mlx.tasks.code.harness import NotPlainError, encode
from sdpo_mlx.tasks.data.fields import content_id, id_of, json_of, messages_of, object_of, optional_text, text_of
from sdpo_mlx.types import Problem

# What the public judges import before an answer, in LiveCodeBench's order: a name that a function and a module share
# (`bisect`, `copy`, `datetime`) is the module in the end, and builtins keep their meaning. APPS adds the last two.
CONTEST_IMPORTS = """\
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator, random, re
import statistics, string, sys
import fractions, time
sys.setrecursionlimit(50000)
sys.set_int_max_str_digits(50000)
"""
_LIVECODEBENCH = {"test_seconds": 6.0, "memory_mb": 4_096}
_APPS = {"test_seconds": 4.0, "memory_mb": 4_096}
_GIVES_LIST = re.compile(r"->\s*(?:typing\.)?(?:List|list|Sequence|Iterable)\b")


def livecodebench(row: Mapping[str, Any], where: str) -> Problem:
    """Read one LiveCodeBench row; feedback quotes public tests, all tests decide. Raises DataError."""
    metadata = object_of(row.get("metadata") or {}, "metadata", where)
    entry = metadata.get("func_name") or None
    tests: list[Test] = []
    for field, public in (("public_test_cases", True), ("private_test_cases", False)):
        for number, case in enumerate(_cases(row, field, where), 1):
            tests.append({**_case(case, entry, f"{where}, {field} {number}"), "public": public})
    statement = _with_starter(text_of(row, "question_content", where), optional_text(row, "starter_code", where))
    ours = {
        "id": (id_of(row, "question_id") or content_id(statement, 16)),
        "level": optional_text(row, "difficulty", where) or None,
        "family": optional_text(row, "platform", where),
        **_LIVECODEBENCH,
    }
    return _contest_problem(ours | public_split(row, where), statement, entry, fitting(tests, where), where)


def apps(row: Mapping[str, Any], where: str) -> Problem:
    """One row of APPS or TACO, whose tests are halved. Raises DataError."""
    taco = any(name in row for name in ("tags", "raw_tags", "skill_types"))
    question, starter = text_of(row, "question", where), optional_text(row, "starter_code", where)
    sets = object_of(text_of(row, "input_output", where), "input_output", where)
    entry, tests = _pairs(sets, "input_output", where, unwrap=not _GIVES_LIST.search(starter))
    family = "taco" if taco else "apps"
    ours = {
        "id": f"{family}-" + (id_of(row, "problem_id", "id") or content_id(question, 16)),
        "level": optional_text(row, "difficulty", where) or None,
        "family": family,
        **_APPS,
    }
    tests = [{**test, "equality": "allclose"} if test["kind"] == "stdin" else test for test in tests]
    statement = _with_starter(question, starter)
    return _contest_problem(ours | public_split(row, where), statement, entry, halved(fitting(tests, where)), where)


def authors_table(row: Mapping[str, Any], where: str) -> Problem:
    """One row of the authors' prepared tables; the messages stay as they are. Raises DataError."""
    reward = object_of(row.get("reward_model"), "reward_model", where)
    if reward.get("style") != "code":
        fix = "give rows whose reward_model.style is code to this task"
        raise DataError(f"reward_model.style is {str(reward.get('style'))[:40]!r}", where=where, fix=fix)
    extra = object_of(row.get("extra_info"), "extra_info", where)
    messages = messages_of(row.get("prompt"), where, name="prompt", question_last=False)
    # The same problems stand in both of their splits, with other tests.
    source = "" if "index" not in extra else f"{row.get('data_source', 'code')}-"
    ending = HELD_OUT if public_split(extra, where).get("split") == "held_out" else ""
    ours = {
        "id": source + (id_of(extra, "index") or content_id(json.dumps(row["prompt"]), 16)) + ending,
        **public_split(extra, where),
    }
    ours["family"] = str(row.get("data_source", ""))
    problem = _authors_problem(ours, reward.get("ground_truth"), "\n\n".join(m["content"] for m in messages), where)
    return Problem(problem.id, messages, problem.private, problem.family)


def authors_json(row: Mapping[str, Any], where: str) -> Problem:
    """One row of the authors' JSON files, before they make tables. Raises DataError."""
    if row.get("kind") != "code":
        raise DataError("kind is not code", where=where, fix="give rows of the kind code to this task")
    prompt = text_of(row, "prompt", where)
    source = optional_text(row, "dataset", where)
    ours = {
        "id": f"{source or 'code'}-" + (id_of(row, "idx") or content_id(prompt, 16)),
        "family": source,
        **public_split(row, where),
    }
    return _authors_problem(ours, row.get("tests"), prompt, where)


def _authors_problem(ours: dict[str, Any], packed: Any, statement: str, where: str) -> Problem:
    sets = object_of(packed, "tests", where)
    entry, tests = _pairs(sets, "tests", where, unwrap=False)
    limits: dict[str, Any] = dict(_LIVECODEBENCH)
    seconds = sets.get("time_limit")
    if isinstance(seconds, int | float) and seconds >= 1:
        limits["test_seconds"] = float(seconds)
    ours = ours | limits
    return _contest_problem(ours, statement, entry, halved(fitting(tests, where)), where)


def _contest_problem(ours: dict[str, Any], statement: str, entry: Any, tests: Sequence[Test], where: str) -> Problem:
    """Check it like a native row, so that errors name the field."""
    row = {**ours, "statement": statement, "entry": entry, "tests": list(tests), "preamble": CONTEST_IMPORTS}
    return problem_from_row(row, where)


def _with_starter(statement: str, starter: str) -> str:
    """Return the statement and, where there is one, the code that an answer starts with."""
    if not starter.strip():
        return statement
    return f"{statement.rstrip()}\n\nYour program starts like this:\n\n```python\n{starter.rstrip()}\n```"


def _cases(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Return the test cases of a field: a list, JSON text of one, or packed text."""
    value = row.get(name)
    if isinstance(value, str):
        text = value.strip()
        if text and not text.startswith("["):
            try:
                text = unpacked_text(text)
            except PackedError as error:
                raise DataError(f"{name} {error}", where=where, fix="take the row as it was published") from None
        value = json_of(text or "[]", name, where)
    if not isinstance(value, list):
        raise DataError(f"{name} is missing or not a list", where=where, fix="write the test cases as JSON text")
    return value


def _case(case: Any, entry: Any, where: str) -> Test:
    """One case of LiveCodeBench."""
    if not isinstance(case, dict) or not all(isinstance(case.get(name), str) for name in ("input", "output")):
        raise DataError("a test case has no input and output", where=where, fix="write both as text")
    kind = case.get("testtype", "functional" if entry else "stdin")
    if kind == "stdin":
        return {"kind": "stdin", "input": case["input"], "output": case["output"], "equality": "decimal"}
    if kind != "functional":
        raise DataError("testtype is unknown", where=where, fix="write stdin or functional")
    if not isinstance(entry, str):
        raise DataError("metadata lacks func_name", where=where, fix="functional tests need the function's name")
    return _value_test(_arguments(case["input"], where), json_of(case["output"], "output", where), where)


def _arguments(text: str, where: str) -> list[Any]:
    """One JSON value a line."""
    return [json_of(line, f"line {n} of input", where) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _value_test(arguments: list[Any], expected: Any, where: str) -> Test:
    """Return a functional test from plain JSON."""
    try:
        encoded = {"args": [encode(each) for each in arguments], "expected": encode(expected)}
    except NotPlainError as error:
        raise DataError(f"a test holds {error}", where=where, fix="leave the test out") from None
    return {"kind": "functional", "equality": "json", **encoded}


def _pairs(sets: Mapping[str, Any], name: str, where: str, *, unwrap: bool) -> tuple[str | None, list[Test]]:
    """Return the function's name, if there is one, and the tests of `inputs` and `outputs`."""
    inputs, outputs = sets.get("inputs"), sets.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise DataError(f"{name} lacks inputs or outputs", where=where, fix="write both as lists")
    if len(inputs) != len(outputs):
        what = f"{name} has {len(inputs)} inputs and {len(outputs)} outputs"
        raise DataError(what, where=where, fix="give every input its output")
    kind = sets.get("testtype") or ("functional" if sets.get("fn_name") else "stdin")
    entry = sets.get("fn_name") or None
    if kind not in ("stdin", "functional", "code") or (kind == "functional" and not isinstance(entry, str)):
        raise DataError(f"{name} has no known testtype", where=where, fix="functional ones need fn_name")
    tests = []
    for number, (given, wanted) in enumerate(zip(inputs, outputs, strict=True), 1):
        place = f"{where}, test {number}"
        if kind == "code":
            tests.append({"kind": "code", "code": _lines(given, place)})
        elif kind == "stdin":
            texts = {"input": _lines(given, place), "output": _lines(wanted, place)}
            tests.append({"kind": "stdin", **texts, "equality": "decimal"})
        else:
            tests.append(_call(given, wanted, place, unwrap=unwrap))
    return (entry if kind == "functional" else None), tests


def _lines(value: Any, where: str) -> str:
    """Return text, or a list of its lines."""
    if isinstance(value, list) and all(isinstance(line, str | int | float) for line in value):
        return "\n".join(map(str, value))
    if not isinstance(value, str):
        raise DataError("an input or output is not text", where=where, fix="write text, or a list of lines")
    return value


def _with_integer_keys(value: Any) -> Any:
    """Return a dictionary whose keys all are integers with such keys, which JSON cannot have; as the judges do."""
    if not (isinstance(value, dict) and value and all(re.fullmatch(r"-?\d{1,300}", key) for key in value)):
        return value
    return {int(key): item for key, item in value.items()}


def _call(given: Any, wanted: Any, where: str, *, unwrap: bool) -> Test:
    """Return arguments as a list or as one JSON value a line; a value as JSON or as the text of it."""
    as_text = isinstance(given, str)
    arguments = _arguments(given, where) if as_text else given
    if not isinstance(arguments, list):
        raise DataError("the arguments of a call are not a list", where=where, fix="write [first, second]")
    if len(arguments) == 1:
        arguments = [_with_integer_keys(arguments[0])]
    expected = json_of(wanted, "output", where) if as_text and isinstance(wanted, str) else wanted
    test = _value_test(arguments, expected, where)
    if unwrap and isinstance(expected, list) and len(expected) == 1:
        test |= {"alternatives": [test["expected"]], "expected": test["expected"][0]}
    return test
