"""The shipped tasks: one record each. A task's own modules are imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdpo_mlx.core.errors import ConfigError

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.tasks.base import Task
    from sdpo_mlx.types import Problem

Parser = Callable[[dict[str, Any], str], "Sequence[Problem]"]


@dataclass(frozen=True)
class OpenedTask:
    """A task ready to grade, and the sandbox that it uses (`none` if it executes nothing)."""

    task: Task
    sandbox: str = "none"
    self_test: Mapping[str, bool] = field(default_factory=dict)


IN_MEMORY = "python:"  # begins the recorded name of a task that was passed as a Python object


@dataclass(frozen=True)
class TaskRecord:
    """What `--task NAME` or `NAME:VARIANT` opens, and the function that parses its rows."""

    name: str
    description: str
    variants: Mapping[str, str]  # the documented ones, with their descriptions
    open: Callable[[Config, str], OpenedTask]  # (settings, variant)
    parser: str = ""  # module:function under `sdpo_mlx.tasks`; empty if the task has its own problems


def open_task(cfg: Config, source: object | None = None, *, grades: bool = True) -> OpenedTask:
    """Open the task that the settings name, or `source`, a task object of a program (`custom.load.adapt`).

    A task that runs programs opens and tests its sandbox first, unless nothing will be graded.
    Raises ConfigError for an unknown name or mode, DataError for bad rows, SandboxError without a sandbox.
    """
    opened = _open(cfg, source, grades)
    if cfg.task.max_turns is not None:
        if not opened.task.replies:
            fix = "leave it out, or choose a task of several turns, such as game"
            raise ConfigError(f"the task {opened.task.name} has one turn", where="task.max_turns", fix=fix)
        opened.task.max_turns = min(opened.task.max_turns, cfg.task.max_turns)
    return opened


def row_parser(task: str) -> Parser:
    """Return the function that turns a row into problems (none if the row is skipped, several in a few formats).

    For a user's file: the parser of rows with a prompt. Raises ConfigError for a task that reads no rows.
    """
    from sdpo_mlx.tasks.custom.load import is_file
    from sdpo_mlx.types import Problem

    record = TASKS.get(task.partition(":")[0])
    path = "custom.values:to_problem" if is_file(task) else record.parser if record else ""
    if not path:
        fix = f"choose one of {', '.join(ROW_TASKS)}, or a file of yours"
        raise ConfigError(f"the task {task!r} reads no rows", where="--task", fix=fix)
    parse = _imported(path)

    def parsed(row: dict[str, Any], where: str) -> Sequence[Problem]:
        found = parse(row, where)
        return [found] if isinstance(found, Problem) else found or []

    return parsed


def _open(cfg: Config, source: object | None, grades: bool) -> OpenedTask:
    from sdpo_mlx.tasks.custom.load import adapt, is_file, open_file

    if cfg.task.tests != "all" and (source is not None or cfg.task.name.partition(":")[0] != "code"):
        raise ConfigError("only the task code has tests to split", where="task.tests", fix="write all, or leave it out")
    if source is not None:
        return OpenedTask(adapt(source, cfg.task))
    if is_file(cfg.task.name):
        return OpenedTask(open_file(cfg.task))
    if cfg.task.name.startswith(IN_MEMORY):
        fix = "load the run in Python, with the task: sdpo_mlx.load_run(folder, task=my_task)"
        raise ConfigError("the task was a Python object, which no file holds", where=cfg.task.name, fix=fix)
    family, _, variant = cfg.task.name.partition(":")
    record = TASKS.get(family)
    if record is None:
        near = get_close_matches(cfg.task.name, DESCRIPTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(DESCRIPTIONS)}"
        raise ConfigError(f"there is no task {cfg.task.name!r}", where="task.name", fix=hint)
    if variant and not record.variants:
        raise ConfigError(f"the task {family} has no variant {variant!r}", where="task.name", fix=f"write {family}")
    if cfg.task.data is not None and not record.parser:
        fix = "name a task that reads rows, as --task code or --task ./my_task.py, or leave --data out"
        raise ConfigError(f"the task {family} has its own problems", where="task.data", fix=fix)
    return _show_code(cfg, variant) if record.open is _open_code and not grades else record.open(cfg, variant)


def _opened(path: str, *arguments: Any) -> OpenedTask:
    return OpenedTask(_imported(path)(*arguments))


def _imported(path: str) -> Any:
    """Return `module:name` of this package."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"sdpo_mlx.tasks.{module}"), name)


def _open_code(cfg: Config, level: str) -> OpenedTask:
    from sdpo_mlx.sandbox.choice import open_sandbox

    sandbox = open_sandbox(cfg.sandbox)
    task = _imported("code.task:CodeTask")(sandbox, cfg.task, level)
    return OpenedTask(task, sandbox.kind, sandbox.self_test())


def _show_code(cfg: Config, level: str) -> OpenedTask:
    """Open the task code to read its problems only."""
    from sdpo_mlx.sandbox.base import NoSandbox

    return _opened("code.task:CodeTask", NoSandbox(), cfg.task, level)


def _open_game(cfg: Config, variant: str) -> OpenedTask:
    if variant == "library":
        return _opened("game.library:LibraryGame", cfg.task)
    return _opened("game.guessing:GuessingGame", cfg.task, variant)


TASKS: Mapping[str, TaskRecord] = {
    record.name: record
    for record in (
        TaskRecord(
            "tiny",
            "list programs in a library whose names only the environment knows (the embedded task)",
            {
                "mid": "the same with four or five operations, where the embedded model starts near 0",
                "hard": "the same with five or six operations, for training at test time",
            },
            lambda cfg, variant: _opened("tiny.task:TinyTask", variant, cfg.task.feedback),
        ),
        TaskRecord(
            "code",
            "Python problems, tests run in a sandbox",
            {"easy": "the same up to the level easy, for small models (also :one_liner, :medium)"},
            _open_code,
            "code.formats.detect:problem_from_any",
        ),
        TaskRecord(
            "math",
            "problems with one final answer, compared by value; also GSM8K, MATH, AIME and DeepMath rows",
            {"easy": "the same up to the level easy, for small models (also :medium)"},
            lambda cfg, level: _opened("math.task:MathTask", cfg.task, level),
            "math.formats:problem_from_row",
        ),
        TaskRecord(
            "tools",
            "requests to answer with tool calls, as lines Action and Action Input",
            {
                "json": "the same with the JSON calls of the model's own chat template",
                "paper": "as tools, judged by the paper's looser rule",
            },
            lambda cfg, variant: _opened("tools.task:ToolsTask", cfg.task, variant),
            "tools.formats:problems_from_row",
        ),
        TaskRecord(
            "science",
            "multiple-choice questions in physics, chemistry, biology, materials",
            {"physics": "the same in one domain (also :chemistry, :biology, :materials)"},
            lambda cfg, domain: _opened("science.task:ScienceTask", cfg.task, domain),
            "science.formats:problem_from_row",
        ),
        TaskRecord(
            "game",
            "find what is hidden by asking, in several turns (also :number, :code, :map)",
            {"library": "a game of two turns that the embedded model learns: the reply tells which names exist"},
            _open_game,
        ),
        TaskRecord(
            "rubric",
            "free text judged by checks that each row carries: words, patterns, JSON, language",
            {},
            lambda cfg, _: _opened("rubric.task:RubricTask", cfg.task),
            "rubric.task:problem_from_row",
        ),
        TaskRecord(
            "judge",
            "questions of any kind; a language model remarks on each answer and scores it",
            {},
            lambda cfg, _: _opened("judge.task:JudgeTask", cfg.task, cfg.judge),
            "judge.task:problem_from_row",
        ),
    )
}

# All documented names, each variant after its task.
DESCRIPTIONS: Mapping[str, str] = {
    f"{record.name}:{variant}" if variant else record.name: text
    for record in TASKS.values()
    for variant, text in {"": record.description, **record.variants}.items()
}
# On a tie the first one is taken as a file's format, so the most general ones come last.
ROW_TASKS = tuple(record.name for record in TASKS.values() if record.parser)
