"""User-defined tasks: one Python file (`--task ./my_task.py`, or `./my_task.py:NAME`), or an object in a program.

The file holds two functions, `problems` and `grade`, or one class with two such methods (a subclass of `Task` or
not). With `--data` and rows that have a `prompt`, `grade` alone is enough.

- `problems()` or `problems(split)` returns rows: dictionaries with `prompt` (text) or `messages`, optionally `id`,
  `tools` (for the chat template), `split` (`train`, `held_out`), `family`, `reference` (a right answer, which only
  the self-teacher may see), and whatever `grade` needs, which the model never sees; or `Problem` objects. A list in
  place of the function works too. If no row has a split, one in five is held out.
- `grade(problem, answer)` or `grade(problem, answer, truncated)` returns a number, true or false, a pair
  `(reward, feedback)`, a dictionary with `reward` and optionally `feedback`, `success`, `kind`, or a `Feedback`.
  Success is a reward of 1 or more unless given. `problem` is what `problems` returned; several threads call it.
- optional: `solution(problem)`, an answer that is known to be right, for `sdpo tasks check`; and for several turns
  `turns` (answers per episode), `reply(problem, answers)` and `grade_turns(problem, answers)` as in `base.py`.
- `data`, `feedback` and `variant` are passed to `problems`, or to the class, if it has a parameter of that name.

The file is the user's own program and runs as such; nothing that a model wrote is executed by this module.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError, SdpoError
from sdpo_mlx.tasks.base import SPLITS, Split, Task
from sdpo_mlx.tasks.custom.values import to_feedback, to_problem
from sdpo_mlx.tasks.data.sources import collect_rows
from sdpo_mlx.tasks.dataset import with_splits
from sdpo_mlx.types import Feedback, Problem

if TYPE_CHECKING:
    from sdpo_mlx.models.resolve import ResolvedModel

Options = Mapping[str, str | None]  # `data`, `feedback`, `variant`
METHODS = ("grade", "solution", "reply", "grade_turns")
TASK_METHODS = ("counters", "start", "close")  # taken from subclasses of Task only: other objects may mean anything


def is_file(name: str) -> bool:
    """Return whether a task's name means a Python file."""
    return name.partition(".py:")[0].removesuffix(".py") != name or "/" in name


def open_file(cfg: TaskConfig) -> CustomTask:
    """Return the task in the file that `cfg.name` names.

    Raises ConfigError for a file without a task or with a mistake in it, DataError for bad rows.
    """
    head, found, name = cfg.name.rpartition(".py:")
    file, variant = Path(f"{head}.py" if found else cfg.name).expanduser(), (name or None) if found else None
    if not file.is_file():
        fix = "name a Python file with a task; `sdpo init` writes one"
        raise ConfigError(f"there is no file {file}", where="task.name", fix=fix)
    origin = Origin(str(file), file)
    module = _load(file, origin)
    options = {"data": cfg.data, "feedback": cfg.feedback, "variant": variant}
    if callable(getattr(module, "grade", None)):
        return CustomTask(module, cfg, origin, options)
    task_class = _task_class(module, file, variant)
    if variant == task_class.__name__:
        options["variant"] = None
    source = origin.guarded(lambda: task_class(**_accepted(task_class, options, origin)))
    return CustomTask(source, cfg, origin, dict.fromkeys(options))


def adapt(source: object, cfg: TaskConfig | None = None) -> Task:
    """Return a task object of a program as a `Task`.

    Accepts a `Task`, any object with `grade` and `problems` (a method or a list; `cfg.data` can replace it), or a
    pair `(problems, grade)`; the forms of rows and grades are those of a task file. `cfg` also gives the name.
    Raises ConfigError for anything else, DataError for bad rows.
    """
    if isinstance(source, Task) and type(source).__module__.startswith("sdpo_mlx."):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        pair, source = source, ModuleType("custom")
        vars(source).update(problems=pair[0], grade=pair[1])
    if inspect.isclass(source) or not callable(getattr(source, "grade", None)):
        what = f"the class {source.__name__}" if inspect.isclass(source) else f"{type(source).__name__}"
        fix = "give an object with the methods problems and grade, or a pair of functions (problems, grade)"
        raise ConfigError(f"{what} is not a task", where="task", fix=fix)
    kind = source.__name__ if isinstance(source, ModuleType) else type(source).__name__
    cfg = cfg or TaskConfig(name=str(getattr(source, "name", "") or kind))
    options = {"data": cfg.data, "feedback": cfg.feedback, "variant": None}
    return CustomTask(source, cfg, Origin(f"task {cfg.name}"), options)


@dataclass(frozen=True)
class Origin:
    """Where a custom task comes from, for error messages."""

    label: str
    file: Path | None = None

    def guarded(self, action: Callable[[], Any]) -> Any:
        """Return the action's result; an exception becomes a ConfigError with the line of the file that raised it."""
        try:
            return action()
        except SdpoError:
            raise
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {error}".partition("\n")[0]
            fix = "correct the file; `--debug` shows the whole traceback" if self.file else "correct the task"
            raise ConfigError(f"{self.label} cannot be used: {message}", where=self.line(error), fix=fix) from error

    def line(self, error: BaseException) -> str:
        """Return `file:line` of the last frame inside the task's file."""
        if isinstance(error, SyntaxError) and error.lineno:
            return f"{error.filename}:{error.lineno}"
        if self.file is None:
            return ""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == self.file.name]
        return f"{self.file}:{lines[-1]}" if lines else str(self.file)


class CustomTask(Task):
    """A user's module or object with the interface of `Task`."""

    def __init__(self, source: Any, cfg: TaskConfig, origin: Origin, options: Options) -> None:
        """`source` has `grade` and, unless `cfg.data` is given, `problems`, which gets the `options` that it accepts.

        Raises ConfigError, DataError.
        """
        self.name = cfg.name
        documented = source if isinstance(source, ModuleType) else type(source)
        text = getattr(source, "description", "") or inspect.cleandoc(documented.__doc__ or "")
        self.description = (
            text.partition("\n")[0] or f"the task in {origin.file.name if origin.file else 'this program'}"
        )
        self.feedback_modes = tuple(getattr(source, "feedback_modes", Task.feedback_modes))
        self.fingerprint = _fingerprint(source, origin)
        self._source, self._origin = source, origin
        names = (*METHODS, *(TASK_METHODS if isinstance(source, Task) else ()))
        self._methods = {name: method for name in names if callable(method := _own(source, name))}
        pairs = _rows(source, cfg, origin, options)
        self._given = {problem.id: row for problem, row in pairs}
        self.rows = with_splits([problem for problem, _ in pairs])
        if self.replies:
            turns = getattr(source, "turns", getattr(source, "max_turns", None))
            if not isinstance(turns, int) or turns < 1:
                fix = "set `turns` to the most answers of an episode"
                raise ConfigError(f"{origin.label} defines reply but not turns", where="task.name", fix=fix)
            self.max_turns = turns

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Return the grade as a Feedback; raises whatever `grade` raises, TypeError for a result of no known form."""
        return to_feedback(self._call("grade", self._row(problem), text, truncated=truncated))

    def reply(self, problem: Problem, answers: Sequence[str]) -> str | None:
        """Return what the user's `reply` returns."""
        reply: str | None = self._call("reply", self._row(problem), answers)
        return reply

    def grade_turns(self, problem: Problem, answers: Sequence[str], *, truncated: bool = False) -> Feedback:
        """Return the grade of an episode, by `grade` if the user has no `grade_turns`."""
        if not self.grades_episodes:
            return self.grade(problem, answers[-1], truncated=truncated)
        return to_feedback(self._call("grade_turns", self._row(problem), answers, truncated=truncated))

    def solution(self, problem: Problem) -> str | None:
        """Return the user's solution, None if there is no such function."""
        solution = self._call("solution", self._row(problem))
        return None if solution is None else str(solution)

    def counters(self) -> Mapping[str, float]:
        """Return the counters of a subclass of Task."""
        return self._call("counters") or {}

    def start(self, model: ResolvedModel) -> None:
        """Start a subclass of Task."""
        self._call("start", model)

    def close(self) -> None:
        """Close a subclass of Task."""
        self._call("close")

    @property
    def needs_model(self) -> bool:
        """Whether a subclass of Task needs the base model."""
        return isinstance(self._source, Task) and self._source.needs_model

    @property
    def replies(self) -> bool:
        """Whether the user's task has `reply`."""
        return "reply" in self._methods

    @property
    def grades_episodes(self) -> bool:
        """Whether the user's task has `grade_turns`."""
        return "grade_turns" in self._methods

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call the user's method, if there is one, with the options that it accepts; an error gets its line as note."""
        method = self._methods.get(name)
        if method is None:
            return None
        accepted = _parameters(method) if options else set()
        try:
            return method(*arguments, **{key: value for key, value in options.items() if key in accepted})
        except Exception as error:
            note = self._origin.line(error)
            if note and note not in getattr(error, "__notes__", ()):  # an exception may be raised more than once
                error.add_note(note)
            raise

    def _row(self, problem: Problem) -> Any:
        """Return what the user's `problems` gave for a problem."""
        return self._given.get(problem.id, problem)


def _load(file: Path, origin: Origin) -> ModuleType:
    """Run the file as a module; its own folder comes first on the path, as for any script."""
    spec = importlib.util.spec_from_file_location(f"own_task_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python file", where="task.name", fix="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    folder = str(file.resolve().parent)
    sys.path[:0] = [] if folder in sys.path else [folder]
    origin.guarded(lambda: spec.loader.exec_module(module) if spec.loader else None)
    return module


def _task_class(module: ModuleType, file: Path, variant: str | None) -> type[Any]:
    """Return the class with both methods that the file itself defines; its name chooses among several."""
    classes = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
    found = [each for each in classes if all(callable(getattr(each, name, None)) for name in ("problems", "grade"))]
    named = [each for each in found if each.__name__ == variant]
    if len(named or found) == 1:
        return (named or found)[0]
    names = ", ".join(each.__name__ for each in found)
    what = f"{file} defines several tasks: {names}" if found else f"{file} defines no task"
    fix = f"choose one with {file}:NAME" if found else "define the functions problems and grade, or a class with both"
    raise ConfigError(what, where="task.name", fix=fix)


def _own(source: Any, name: str) -> Any:
    """Return an attribute that the user defined, None if it is missing or only inherited from Task."""
    inherited = isinstance(source, Task) and getattr(type(source), name, None) is getattr(Task, name)
    return None if inherited else getattr(source, name, None)


def _rows(source: Any, cfg: TaskConfig, origin: Origin, options: Options) -> list[tuple[Problem, Any]]:
    """Return problems with the row of each; rows of `cfg.data` if the source has no `problems`."""
    problems = _own(source, "problems") or (list(source.rows) if isinstance(source, Task) else None)
    if not problems:
        if cfg.data is None:
            fix = "define problems(), or give rows with a prompt by --data"
            raise ConfigError(f"{origin.label} defines no problems", where="task.name", fix=fix)
        return collect_rows(cfg.data, lambda row, where: (to_problem(row, where), row), cfg.on_error).items
    accepted = _accepted(problems, options, origin)
    splits: tuple[Split | None, ...] = SPLITS if "split" in _parameters(problems) else (None,)
    pairs = []
    for split in splits:
        arguments = accepted | ({"split": split} if split else {})
        rows = origin.guarded(partial(_listed, problems, arguments))
        inside = f" of {split}" if split else ""
        for number, row in enumerate(rows, 1):  # a row without an id gets its number
            pairs.append((to_problem(row, f"{origin.label}, problem {number}{inside}", split, number), row))
    return pairs


def _listed(problems: Any, arguments: dict[str, str | None]) -> list[Any]:
    return list(problems(**arguments) if callable(problems) else problems)


def _accepted(target: Any, options: Options, origin: Origin) -> dict[str, str | None]:
    """Return the options that `target` has a parameter for. Raises ConfigError if a given one is not accepted."""
    names = _parameters(target)
    for name, value in options.items():
        if value is not None and name not in names:
            fix = f"leave it out, or add a parameter `{name}` to problems (or to the class)"
            raise ConfigError(f"the task in {origin.label} takes no {name}", where=f"task.{name}", fix=fix)
    return {name: value for name, value in options.items() if name in names}


def _parameters(target: Any) -> set[str]:
    try:
        return set(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return set()


def _fingerprint(source: Any, origin: Origin) -> str:
    """Return a digest of the task's file, or of the object's methods and attributes.

    Unique if the methods have no source text, so that grades of another program are never reused.
    """
    if origin.file is not None:
        return hashlib.sha256(origin.file.read_bytes()).hexdigest()
    members = (
        vars(source) if isinstance(source, ModuleType) else {**vars(type(source)), **getattr(source, "__dict__", {})}
    )
    functions = [each for each in members.values() if inspect.isfunction(each)]
    values = {
        name: each
        for name, each in members.items()
        if not inspect.isfunction(each) and not name.startswith(("__", "_abc"))
    }
    try:
        text = "\n".join([*map(inspect.getsource, functions), repr(values)])
    except (OSError, TypeError):
        text = uuid.uuid4().hex
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
