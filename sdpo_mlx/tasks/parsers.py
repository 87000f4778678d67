"""Which function reads the rows of which task; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from sdpo_mlx.errors import ConfigError
from sdpo_mlx.tasks.own import is_own
from sdpo_mlx.tasks.own_values import problem_of
from sdpo_mlx.types import Problem

Parser = Callable[[dict[str, Any], str], Problem]

PARSERS: Mapping[str, str] = {
    "code": "code_rows:problem_from_row",
}


def row_parser(task: str) -> Parser:
    """The parser of a task's rows; for a file of one's own that of rows with a prompt.

    Raises ConfigError for a task that reads no rows.
    """
    if is_own(task):
        return problem_of
    module, _, name = PARSERS.get(task.partition(":")[0], "").partition(":")
    if not module:
        fix = f"choose one of {', '.join(PARSERS)}, or a file of yours"
        raise ConfigError(f"the task {task!r} reads no rows", where="--task", fix=fix)
    parser: Parser = getattr(import_module(f"sdpo_mlx.tasks.{module}"), name)
    return parser
