"""Shared by tasks that read rows: loading, the held-out split, feedback modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, TypeVar

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.tasks.data.jsonl import collect
from sdpo_mlx.tasks.data.sources import collect_rows
from sdpo_mlx.types import Problem

T = TypeVar("T")
HELD_OUT_EVERY = 5  # one problem in five is held out where the rows themselves say nothing


def load_problems(cfg: TaskConfig, shipped: str, parse: Callable[[dict[str, Any], str], Problem]) -> list[Problem]:
    """Return the problems that `task.data` names, or the shipped ones, with their split in `private["split"]`.

    `shipped` is a path inside `assets`. Raises DataError that names the bad rows.
    """
    return with_splits(load_rows(cfg, shipped, parse))


def load_rows(cfg: TaskConfig, shipped: str, parse: Callable[[dict[str, Any], str], T]) -> list[T]:
    """Like `load_problems`, for rows of any type and without splits."""
    if cfg.data is not None:
        return collect_rows(cfg.data, parse, cfg.on_error).items
    with resources.as_file(resources.files("sdpo_mlx").joinpath("assets", shipped)) as path:
        return collect(path, parse).items


def with_splits(problems: Sequence[Problem]) -> list[Problem]:
    """Return problems with their split: the row's own, otherwise one in five is held out by a derived order.

    If any row has a split, rows without one are for training.
    """
    if any(problem.private.get("split") for problem in problems):
        return [_put(problem, problem.private.get("split") or "train") for problem in problems]
    order = sorted(range(len(problems)), key=lambda i: derive("held-out", problems[i].id))
    held_out = set(order[: len(problems) // HELD_OUT_EVERY])
    return [_put(problem, "held_out" if i in held_out else "train") for i, problem in enumerate(problems)]


def feedback_mode(task: str, mode: str | None, modes: Sequence[str]) -> str:
    """Return the chosen feedback mode; None means the first. Raises ConfigError for an unknown one."""
    if mode is None:
        return modes[0]
    if mode not in modes:
        fix = f"choose one of {', '.join(modes)}"
        raise ConfigError(f"task {task} has no feedback mode {mode!r}", where="task.feedback", fix=fix)
    return mode


def _put(problem: Problem, split: str) -> Problem:
    return replace(problem, private={**problem.private, "split": split})
