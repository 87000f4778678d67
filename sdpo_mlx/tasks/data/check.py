"""Check rows before training: name every bad one by its line, and detect the task whose format they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.tasks.data.jsonl import BadRow, Row, parse_rows
from sdpo_mlx.tasks.data.sources import scan_rows
from sdpo_mlx.tasks.dataset import with_splits
from sdpo_mlx.tasks.registry import ROW_TASKS, row_parser

GLANCE = 100  # rows that decide whose format a file has


@dataclass(frozen=True)
class Checked:
    """The contents of a file: the task whose format it has, its rows, the bad ones, problems by split."""

    source: str
    task: str
    rows: int
    bad: tuple[BadRow, ...]
    splits: Mapping[str, int]

    def named(self) -> list[str]:
        """Return every bad row as `file:line: what`, in the file's order."""
        return [f"{row.place or f'{self.source}:'}{row.line}: {row.what}" for row in self.bad]


def check_rows(source: str, task: str | None = None) -> Checked:
    """Read every row of `source` as `task` would; None: as the task that takes most of the first rows.

    Raises DataError if the source cannot be read, holds nothing, or has no task's format.
    """
    rows = list(scan_rows(source))
    if not rows:
        raise DataError(f"{source}: holds no rows", fix="write one JSON object a line")
    task = task or _detect_task([row for row in rows if isinstance(row, Row)][:GLANCE], source)
    found = list(parse_rows(rows, source, row_parser(task)))
    problems = [problem for each in found if not isinstance(each, BadRow) for problem in each]
    double = {name for name, times in Counter(problem.id for problem in problems).items() if times > 1}
    bad = [each for each in found if isinstance(each, BadRow)]
    if double and not bad:
        named = ", ".join(sorted(double)[:10])
        raise DataError(f"{len(double)} ids stand for several rows: {named}", where=source, fix="make them differ")
    splits = Counter(str(problem.private["split"]) for problem in with_splits(problems))
    return Checked(source, task, len(found), tuple(bad), dict(splits))


def _detect_task(rows: Sequence[Row], source: str) -> str:
    """Return the task whose parser accepts most rows, the first of ROW_TASKS on a tie."""
    taken = dict.fromkeys(ROW_TASKS, 0)
    for task in ROW_TASKS:
        with suppress(ConfigError):  # an extra that this format needs is missing
            found = parse_rows(rows, source, row_parser(task))
            taken[task] = sum(not isinstance(each, BadRow) and bool(each) for each in found)
    best = max(taken, key=lambda task: taken[task])
    if rows and not taken[best]:
        fields = ", ".join(sorted(rows[0].value)[:12])
        fix = f"name the task with --task: {', '.join(ROW_TASKS)}, or a file of yours"
        raise DataError(f"no task reads rows with the fields {fields}", where=source, fix=fix)
    return best
