"""Tasks by name; each is imported only when it was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from sdpo_mlx.config import SandboxConfig, TaskConfig
from sdpo_mlx.errors import ConfigError
from sdpo_mlx.tasks.base import Task

DESCRIPTIONS: Mapping[str, str] = {
    "tiny": "list programs in a library whose names only the environment knows (the embedded task)",
    "tiny:mid": "the same with four or five operations, where the embedded model starts near 0",
    "tiny:hard": "the same with five or six operations, for training at test time",
    "code": "Python problems, tests run in a sandbox",
    "code:easy": "the same up to the level easy, for small models (also :one_liner, :medium)",
}


@dataclass(frozen=True)
class Opened:
    """A task ready to grade, and the sandbox it uses (`none` when it executes nothing)."""

    task: Task
    sandbox: str
    self_test: Mapping[str, bool]


def open_task(task: TaskConfig, sandbox: SandboxConfig) -> Opened:
    """Build the task; opens and tests the sandbox first where the task runs programs.

    Raises ConfigError for an unknown name or mode, DataError for bad rows, SandboxError without a sandbox.
    """
    family, _, variant = task.name.partition(":")
    openers: Mapping[str, Callable[[], Opened]] = {
        "tiny": lambda: _tiny(variant, task),
        "code": lambda: _code(variant, task, sandbox),
    }
    if family not in openers:
        near = get_close_matches(task.name, DESCRIPTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(DESCRIPTIONS)}"
        raise ConfigError(f"there is no task {task.name!r}", where="task.name", fix=hint)
    return openers[family]()


def _tiny(variant: str, cfg: TaskConfig) -> Opened:
    from sdpo_mlx.tasks.tiny import TinyTask

    if cfg.data is not None:
        raise ConfigError("the task tiny has its own problems", where="task.data", fix="use --task code for your own")
    return Opened(TinyTask(variant, cfg.feedback), "none", {})


def _code(level: str, cfg: TaskConfig, sandbox: SandboxConfig) -> Opened:
    from sdpo_mlx.sandbox.choice import open_sandbox
    from sdpo_mlx.tasks.code import CodeTask

    opened = open_sandbox(sandbox)
    data = Path(cfg.data) if cfg.data is not None else None
    return Opened(CodeTask(opened, data, cfg.feedback, cfg.on_error, level), opened.kind, opened.self_test())
