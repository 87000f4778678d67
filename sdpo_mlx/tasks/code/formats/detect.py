"""Detect the format of a row of programming problems: the native one, or that of a public data set.

A row's fields determine its format. It is converted to a native row and checked like one, so
there is one validation. In all of them public tests may be quoted (inputs and expected values appear in the
feedback), and hidden ones decide too; if no test is marked, the first half is public.
Tests whose results are too long to come back from a run, or whose inputs are longer than 4 MB together, are
left out, the longest first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.formats.assertions import humaneval, mbpp
from sdpo_mlx.tasks.code.formats.contests import apps, authors_json, authors_table, livecodebench
from sdpo_mlx.tasks.code.formats.native import problem_from_row
from sdpo_mlx.tasks.data.question_parts import refuse_parts
from sdpo_mlx.tasks.references import code_reference
from sdpo_mlx.types import Problem


@dataclass(frozen=True)
class Layout:
    """A format's name, the fields that identify it (`a|b`: one of them), and its reader."""

    name: str
    fields: tuple[str, ...]
    read: Callable[[dict[str, Any], str], Problem]


LAYOUTS: tuple[Layout, ...] = (
    Layout("LiveCodeBench", ("question_content", "public_test_cases", "private_test_cases"), livecodebench),
    Layout("HumanEval", ("prompt", "entry_point", "test"), humaneval),
    Layout("MBPP", ("text|prompt", "test_list"), mbpp),
    Layout("APPS or TACO", ("question", "input_output"), apps),
    Layout("the SDPO authors'", ("prompt", "reward_model", "extra_info"), authors_table),
    Layout("the SDPO authors' JSON", ("prompt", "kind", "tests"), authors_json),
    Layout("ours", ("id", "statement", "tests"), problem_from_row),
)


def problem_from_any(row: dict[str, Any], where: str) -> Problem:
    """One checked problem from a row of any layout in `LAYOUTS`.

    Raises DataError naming the bad field, or for an unknown layout the nearest one and what it lacks there.
    """
    for layout in LAYOUTS:
        if not _missing(row, layout):
            problem = layout.read(row, where)
            refuse_parts(row, problem.messages, where)
            return replace(problem, reference=code_reference(row))
    nearest = min(LAYOUTS, key=lambda layout: len(_missing(row, layout)) / len(layout.fields))
    missing = _missing(row, nearest)
    if len(missing) == len(nearest.fields):
        names = ", ".join(layout.name for layout in LAYOUTS)
        raise DataError("the row is in no known layout", where=where, fix=f"the layouts are {names}")
    if nearest.name == "ours":
        return problem_from_row(row, where)
    lacks = missing[0].replace("|", " or ")
    what = f"the row is in no known layout; nearest is {nearest.name}, which has {lacks} too"
    raise DataError(what, where=where, fix=f"add the field {lacks}, or write rows in our layout")


def _missing(row: Mapping[str, Any], layout: Layout) -> list[str]:
    return [name for name in layout.fields if not any(each in row for each in name.split("|"))]
