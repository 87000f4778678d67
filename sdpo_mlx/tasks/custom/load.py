"""A task from one Python file of the user's own: `--task ./my_task.py`, or `./my_task.py:NAME`.

The file holds two functions, `problems` and `grade`, or one class with two such methods. With `--data` and rows
that carry a `prompt`, `grade` alone is enough.

- `problems()` or `problems(split)` gives rows: dictionaries with `prompt` (text) or `messages`, optionally `id`,
  `tools` (for the chat template), `split` (`train`, `held_out`), `family`, `reference` (a right answer, which only
  a self-teacher may be shown), and whatever `grade` wants to know, which the model never sees; or `Problem` objects.
  Where no row names a split, one in five is held out.
- `grade(problem, answer)` or `grade(problem, answer, truncated)` gives a number, true or false, a pair
  `(reward, feedback)`, a dictionary with `reward` and optionally `feedback`, `success`, `kind`, or a `Feedback`.
  Success is a reward of 1 or more unless said otherwise. It gets what `problems` gave, and runs on several threads.
- optional: `solution(problem)`, an answer known to be right, for `sdpo tasks check`; and for several turns `turns`,
  `reply(problem, answers)`, `grade_turns(problem, answers)` as in `base.py`.
- `data`, `feedback` and `variant` are passed on to `problems`, or to the class, where a parameter bears that name.

The file is the user's own program and runs as such; nothing that a model wrote is executed by this module.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError, SdpoError
from sdpo_mlx.tasks.base import Split
from sdpo_mlx.tasks.custom.values import feedback_of, problem_of
from sdpo_mlx.tasks.data.sources import collect_rows
from sdpo_mlx.tasks.dataset import SPLITS, in_split, with_splits
from sdpo_mlx.types import Feedback, Problem

PASSED_ON = ("data", "feedback", "variant")


def is_own(name: str) -> bool:
    """Whether a task's name means a file."""
    return name.partition(".py:")[0].removesuffix(".py") != name or "/" in name


def open_own(cfg: TaskConfig) -> OwnTask:
    """The task in the file that `cfg.name` names.

    Raises ConfigError for a file without a task or with a mistake in it, DataError for rows that are none.
    """
    file, variant = _path_and_variant(cfg.name)
    module = _load(file)
    given = {"data": cfg.data, "feedback": cfg.feedback, "variant": variant}
    if callable(getattr(module, "grade", None)):
        return OwnTask(cfg, file, module, given)
    found = _task_class(module, file, variant)
    if variant == found.__name__:
        given["variant"] = None
    made = _guarded(file, lambda: found(**_accepted(found, given, file)))
    return OwnTask(cfg, file, made, {"data": None, "feedback": None, "variant": None})


class OwnTask:
    """What a user's file gives, as the loop expects it."""

    def __init__(self, cfg: TaskConfig, file: Path, source: Any, given: dict[str, str | None]) -> None:
        """`source` is the module or the object with `problems` and `grade`; `given` what is passed to `problems`."""
        self.name = cfg.name
        self.description = (inspect.getdoc(source) or f"the task in {file.name}").partition("\n")[0]
        self.feedback_modes: tuple[str, ...] = tuple(getattr(source, "feedback_modes", ("its own",)))
        self.fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
        self._file = file
        self._grade = source.grade
        self._extra = _parameters(source.grade) & {"truncated"}
        pairs = _rows(cfg, file, source, given)
        self._given = {problem.id: row for problem, row in pairs}
        self._problems = with_splits([problem for problem, _ in pairs])
        self._optional(source)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The rows of one split, in the order that the file gave them."""
        return in_split(self._problems, split)

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """What the file's `grade` says, as a Feedback; raises whatever it raises, TypeError for what is no verdict."""
        extra = dict.fromkeys(self._extra, truncated)
        verdict: Feedback = self._noted(lambda: feedback_of(self._grade(self._row(problem), text, **extra)))
        return verdict

    def _optional(self, source: Any) -> None:
        """What a task may have besides: a solution to check with, several turns; absent here where absent there."""
        if callable(getattr(source, "solution", None)):
            self.solution = lambda problem: source.solution(self._row(problem))
        if callable(getattr(source, "reply", None)):
            self.turns = int(source.turns)
            self.reply = lambda problem, answers: self._noted(lambda: source.reply(self._row(problem), answers))
        if callable(getattr(source, "grade_turns", None)):
            extra = _parameters(source.grade_turns) & {"truncated"}
            self.grade_turns = lambda problem, answers, truncated=False: self._noted(
                lambda: feedback_of(source.grade_turns(self._row(problem), answers, **dict.fromkeys(extra, truncated)))
            )

    def _noted(self, action: Callable[[], Any]) -> Any:
        """The action's result; what it raises bears a note on the line of the file that was at work."""
        try:
            return action()
        except Exception as error:
            note = _line_in(self._file, error)
            if note not in getattr(error, "__notes__", ()):  # one exception may be raised again and again
                error.add_note(note)
            raise

    def _row(self, problem: Problem) -> Any:
        """What the file gave for a problem."""
        return self._given.get(problem.id, problem)


def _path_and_variant(name: str) -> tuple[Path, str | None]:
    head, found, variant = name.rpartition(".py:")
    path = Path(f"{head}.py" if found else name).expanduser()
    if not path.is_file():
        fix = "name a Python file with a task; `sdpo init` writes one"
        raise ConfigError(f"there is no file {path}", where="task.name", fix=fix)
    return path, (variant or None) if found else None


def _load(file: Path) -> ModuleType:
    """Run the file as a module; its own folder comes first on the path, as for any script."""
    spec = importlib.util.spec_from_file_location(f"own_task_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file", where="task.name", fix="give it the ending .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    folder = str(file.resolve().parent)
    sys.path[:0] = [] if folder in sys.path else [folder]
    _guarded(file, lambda: spec.loader.exec_module(module) if spec.loader else None)
    return module


def _task_class(module: ModuleType, file: Path, variant: str | None) -> type[Any]:
    """The class with both methods that the file itself defines; its name chooses among several."""
    own = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
    found = [each for each in own if all(callable(getattr(each, name, None)) for name in ("problems", "grade"))]
    named = [each for each in found if each.__name__ == variant]
    if len(named or found) == 1:
        return (named or found)[0]
    names = ", ".join(each.__name__ for each in found)
    what = f"{file} holds several tasks: {names}" if found else f"{file} holds no task"
    fix = f"choose one with {file}:NAME" if found else "define the functions problems and grade, or a class with both"
    raise ConfigError(what, where="task.name", fix=fix)


def _rows(cfg: TaskConfig, file: Path, source: Any, given: dict[str, str | None]) -> list[tuple[Problem, Any]]:
    """Problems with what the file gave for each; from `--data` where the file has no `problems`."""
    if not callable(getattr(source, "problems", None)):
        if cfg.data is None:
            fix = "define problems(), or give rows with a prompt by --data"
            raise ConfigError(f"{file} defines no problems", where="task.name", fix=fix)
        return collect_rows(cfg.data, lambda row, where: (problem_of(row, where), row), cfg.on_error).items
    parameters = _accepted(source.problems, given, file)
    if "split" not in _parameters(source.problems):
        return _problems(file, _guarded(file, partial(_listed, source.problems, parameters)), None)
    pairs = []
    for split in SPLITS:
        rows = _guarded(file, partial(_listed, source.problems, {"split": split, **parameters}))
        pairs += _problems(file, rows, split)
    return pairs


def _listed(problems: Callable[..., Any], parameters: dict[str, Any]) -> list[Any]:
    return list(problems(**parameters))


def _problems(file: Path, rows: list[Any], split: Split | None) -> list[tuple[Problem, Any]]:
    """Checked problems; a row without an id gets its number."""
    inside = f" of {split}" if split else ""
    return [
        (problem_of(row, f"{file}, problem {number}{inside}", split, number), row) for number, row in enumerate(rows, 1)
    ]


def _accepted(target: Callable[..., Any], given: dict[str, str | None], file: Path) -> dict[str, str | None]:
    """What `target` has a parameter for. Raises ConfigError where the user gave something it has none for."""
    names = _parameters(target)
    for name, value in given.items():
        if value is not None and name not in names:
            fix = f"leave it out, or add a parameter `{name}` to problems (or to the class)"
            raise ConfigError(f"the task in {file} takes no {name}", where=f"task.{name}", fix=fix)
    return {name: given[name] for name in PASSED_ON if name in names and name in given}


def _parameters(target: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return set()


def _guarded(file: Path, action: Callable[[], Any]) -> Any:
    """The action's result; whatever the file raises becomes one line with the line it was raised in."""
    try:
        return action()
    except SdpoError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        fix = "mend the file; `--debug` shows the whole traceback"
        raise ConfigError(f"{file} cannot be used: {said}", where=_line_in(file, error), fix=fix) from error


def _line_in(file: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}:{error.lineno}"
    own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file.name]
    return f"{file}:{own[-1].lineno}" if own else str(file)
