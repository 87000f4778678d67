"""`sdpo init`: a starter folder with settings and rows that work, after three questions or none."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sdpo_cli import init_templates
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_cli.init_templates import InitChoices


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made where it is missing.")] = Path("my-task"),
    *,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The first question: which model?")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="KIND", help="The second: which task? own, code, math, science, rubric or judge."
        ),
    ] = None,
    feedback: Annotated[
        bool | None, typer.Option("--feedback/--no-feedback", help="The third: can it be said what was wrong?")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, take what would be proposed.")] = False,
) -> None:
    """Write a starter folder: rows, the settings of a run, and a grader of your own. Asks what to write in a terminal.

    Example: sdpo init my-task --yes
    """

    if model is not None:
        model = init_templates.checked_model(model)
    if task is not None:
        init_templates.checked_task(task)
    _refuse_to_write_over(folder)
    asked = not yes and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    try:
        answers = _asked(model, task, feedback) if asked else _proposed(model, task, feedback)
    except typer.Abort:
        render.say("")  # what the terminal echoed of Ctrl-C has a line of its own
        raise
    files = init_templates.files(answers)
    steps = init_templates.next_steps(answers)
    write(folder, files)
    enter = [] if folder == Path() else [f"  cd {folder}"]
    render.result([f"wrote {', '.join(files)} to {folder}", "next:", *enter, *(f"  {step}" for step in steps)])


def _proposed(model: str | None, task: str | None, feedback: bool | None) -> InitChoices:
    """What is answered already, and for the rest what would be proposed."""

    return init_templates.InitChoices(
        model or init_templates.suggestions()[0].name, task or "own", feedback is not False
    )


def _asked(model: str | None, task: str | None, feedback: bool | None) -> InitChoices:
    """The questions that no flag has answered, on stderr; Enter takes what stands in brackets."""

    model = model or _model()
    if task is None:
        render.say("What is your task?")
        task = _one_of([(name, about) for name, about in init_templates.TASKS.items()], "task")
    if feedback is None:
        feedback = typer.confirm("Can it be said of a failed answer what was wrong with it?", default=True, err=True)
    return init_templates.InitChoices(model, task, feedback)


def _model() -> str:
    """A name of the list, or any that means a model; asked again until it does."""
    from sdpo_mlx.core.errors import ConfigError

    listed = init_templates.suggestions()
    render.say("Which model? A number, or any name, folder or hub repository.")
    while True:
        said = _one_of([(each.name, each.about) for each in listed], "model", others=True)
        try:
            return init_templates.checked_model(said)
        except ConfigError as error:
            render.say(error.line())


def _one_of(choices: list[tuple[str, str]], asked: str, others: bool = False) -> str:
    """One of several by its number or its name, the first by Enter; with `others` any other word too."""
    for line in render.table(("", "", ""), [(f"{n}.", *each) for n, each in enumerate(choices, 1)])[1:]:
        render.say(f"  {line}")
    names = [name for name, _ in choices]
    while True:
        said = str(typer.prompt(asked, default=names[0], err=True)).strip()
        if said.isascii() and said.isdecimal() and 1 <= int(said) <= len(names):
            return names[int(said) - 1]
        if said in names or (others and said):
            return said
        render.say(f"write a number from 1 to {len(names)}, or a name of the list")


def _refuse_to_write_over(folder: Path) -> None:
    from sdpo_mlx.core.errors import ConfigError

    names = (init_templates.GRADER, init_templates.ROWS, init_templates.SETTINGS, init_templates.SCHEMA)
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder / there[0]} is there already", where="FOLDER", fix="name another folder")


def write(folder: Path, files: dict[str, bytes]) -> None:
    """All files or, where one cannot be written or somebody interrupts, none. Raises StorageError."""
    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.core.storage import write_bytes

    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)
    except BaseException as error:
        for name in files:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        for each in made:
            with suppress(OSError):
                each.rmdir()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            fix = "choose a folder you may write to"
            raise StorageError(f"cannot write {folder}: {error.strerror}", fix=fix) from error
        raise
