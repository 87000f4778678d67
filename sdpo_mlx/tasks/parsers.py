"""Which function reads the rows of which task; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.custom.load import is_own
from sdpo_mlx.tasks.custom.values import problem_of
from sdpo_mlx.types import Problem

Parser = Callable[[dict[str, Any], str], Sequence[Problem]]


def row_parser(task: str) -> Parser:
    """What turns a row of this task into its problems (none where the row is passed over, several in a few layouts).

    For a file of one's own that of rows with a prompt. Raises ConfigError for a task that reads no rows.
    """
    if is_own(task):
        return lambda row, where: [problem_of(row, where)]
    opener = PARSERS.get(task.partition(":")[0])
    if opener is None:
        fix = f"choose one of {', '.join(PARSERS)}, or a file of yours"
        raise ConfigError(f"the task {task!r} reads no rows", where="--task", fix=fix)
    return opener()


def _code() -> Parser:
    from sdpo_mlx.tasks.code.formats.detect import problem_from_any

    return lambda row, where: [problem_from_any(row, where)]


def _math() -> Parser:
    from sdpo_mlx.tasks.math.formats import problem_from_row

    return lambda row, where: [problem_from_row(row, where)]


def _science() -> Parser:
    from sdpo_mlx.tasks.science.formats import problem_from_question, question_from_row

    def parsed(row: dict[str, Any], where: str) -> Sequence[Problem]:
        question = question_from_row(row, where)
        return [problem_from_question(question)] if question else []

    return parsed


def _tools() -> Parser:
    from sdpo_mlx.tasks.tools.formats import problems_from_row

    return lambda row, where: problems_from_row(row, where, "actions")


def _rubric() -> Parser:
    from sdpo_mlx.tasks.rubric.task import problem_from_row

    return lambda row, where: [problem_from_row(row, where)]


def _judge() -> Parser:
    from sdpo_mlx.tasks.judge.task import problem_from_row

    return lambda row, where: [problem_from_row(row, where)]


# Where a file's format is guessed the earlier wins a tie, so the least particular comes last.
PARSERS: Mapping[str, Callable[[], Parser]] = {
    "code": _code,
    "math": _math,
    "science": _science,
    "tools": _tools,
    "rubric": _rubric,
    "judge": _judge,
}
