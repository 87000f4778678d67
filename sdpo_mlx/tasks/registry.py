"""Tasks by name; each is imported only when it was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from sdpo_mlx.config import Config, TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.base import Task, turns_of
from sdpo_mlx.tasks.custom.load import is_own, open_own
from sdpo_mlx.tasks.names import DESCRIPTIONS


@dataclass(frozen=True)
class Opened:
    """A task ready to grade, and the sandbox it uses (`none` when it executes nothing)."""

    task: Task
    sandbox: str = "none"
    self_test: Mapping[str, bool] = field(default_factory=dict)


def open_task(cfg: Config) -> Opened:
    """Build the task, shipped or one in a file; opens and tests the sandbox first where it runs programs.

    Raises ConfigError for an unknown name or mode, DataError for bad rows, SandboxError without a sandbox.
    """
    opened = _opened(cfg)
    if cfg.task.max_turns is not None:
        _limit_turns(opened.task, cfg.task.max_turns)
    return opened


def _opened(cfg: Config) -> Opened:
    if is_own(cfg.task.name):
        return Opened(open_own(cfg.task))
    family, _, variant = cfg.task.name.partition(":")
    if family not in _OPENERS:
        near = get_close_matches(cfg.task.name, DESCRIPTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(DESCRIPTIONS)}"
        raise ConfigError(f"there is no task {cfg.task.name!r}", where="task.name", fix=hint)
    return _OPENERS[family](variant, cfg)


def _limit_turns(task: Task, most: int) -> None:
    """Let episodes have at most so many answers. Raises ConfigError for a task without turns."""
    if not hasattr(task, "reply"):
        fix = "leave it out, or choose a task of several turns, such as game"
        raise ConfigError(f"the task {task.name} has one turn", where="task.max_turns", fix=fix)
    task.turns = min(turns_of(task), most)  # type: ignore[attr-defined]


def no_data(task: TaskConfig) -> None:
    """For tasks with problems of their own. Raises ConfigError when `task.data` is given."""
    if task.data is not None:
        family = task.name.partition(":")[0]
        fix = "name a task that reads rows, as --task code or --task ./my_task.py, or leave --data out"
        raise ConfigError(f"the task {family} has its own problems", where="task.data", fix=fix)


def _tiny(variant: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.tiny.task import TinyTask

    no_data(cfg.task)
    return Opened(TinyTask(variant, cfg.task.feedback))


def _code(level: str, cfg: Config) -> Opened:
    from sdpo_mlx.sandbox.choice import open_sandbox
    from sdpo_mlx.tasks.code.task import CodeTask

    sandbox = open_sandbox(cfg.sandbox)
    return Opened(CodeTask(sandbox, cfg.task, level), sandbox.kind, sandbox.self_test())


def _tools(variant: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.tools.task import ToolsTask

    return Opened(ToolsTask(cfg.task, variant))


def _science(domain: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.science.task import ScienceTask

    return Opened(ScienceTask(cfg.task, domain))


def _math(level: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.math.task import MathTask

    return Opened(MathTask(cfg.task, level))


def _rubric(variant: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.rubric.task import RubricTask

    if variant:
        raise ConfigError(f"the task rubric has no variant {variant!r}", where="task.name", fix="write rubric")
    return Opened(RubricTask(cfg.task))


def _judge(variant: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.judge.task import JudgeTask

    if variant:
        raise ConfigError(f"the task judge has no variant {variant!r}", where="task.name", fix="write judge")
    return Opened(JudgeTask(cfg.task, cfg.judge))


def _game(variant: str, cfg: Config) -> Opened:
    from sdpo_mlx.tasks.game.guessing import GuessingGame
    from sdpo_mlx.tasks.game.library import LibraryGame

    no_data(cfg.task)
    return Opened(LibraryGame(cfg.task) if variant == "library" else GuessingGame(cfg.task, variant))


_OPENERS: Mapping[str, Callable[[str, Config], Opened]] = {
    "tiny": _tiny,
    "code": _code,
    "math": _math,
    "tools": _tools,
    "science": _science,
    "game": _game,
    "rubric": _rubric,
    "judge": _judge,
}
