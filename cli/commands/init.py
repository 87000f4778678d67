"""`sdpo init`: write a starter folder with a working config and rows, after three questions or none."""

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
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Created if missing.")] = Path("my-task"),
    *,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="The model.")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="KIND", help="The task: own, code, math, science, rubric or judge."),
    ] = None,
    feedback: Annotated[
        bool | None, typer.Option("--feedback/--no-feedback", help="Whether the grader explains what is wrong.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Use the defaults, ask nothing.")] = False,
) -> None:
    """Write a starter folder with rows, a config and a custom grader. On a terminal it asks what to write.

    Example: sdpo init my-task --yes
    """
    from sdpo_mlx.core.errors import ConfigError

    if model is not None:
        model = init_templates.checked_model(model)
    if task is not None:
        init_templates.checked_task(task)
    names = (init_templates.GRADER, init_templates.ROWS, init_templates.CONFIG, init_templates.SCHEMA)
    if existing := [name for name in names if (folder / name).exists()]:
        raise ConfigError(f"{folder / existing[0]} already exists", where="FOLDER", fix="choose another folder")
    ask = not yes and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    try:
        if ask:
            choices = ask_choices(model, task, feedback)
        else:
            name = model or init_templates.suggestions()[0].name
            choices = init_templates.InitChoices(name, task or "own", feedback is not False)
    except typer.Abort:
        render.message("")  # ends the line on which the terminal echoed Ctrl-C
        raise
    files = init_templates.files(choices)
    write(folder, files)
    enter = [] if folder == Path() else [f"  cd {folder}"]
    steps = [f"  {step}" for step in init_templates.next_steps(choices)]
    render.result([f"wrote {', '.join(files)} to {folder}", "next:", *enter, *steps])


def ask_choices(model: str | None, task: str | None, feedback: bool | None) -> InitChoices:
    """Ask on stderr for the choices that no option gives; Enter takes the default in brackets."""
    from sdpo_mlx.core.errors import ConfigError

    if model is None:
        listed = [(each.name, each.about) for each in init_templates.suggestions()]
        render.message("Which model? A number, or any name, folder or hub repository.")
    while model is None:
        try:
            model = init_templates.checked_model(_ask_one_of(listed, "model", others=True))
        except ConfigError as error:
            render.message(error.line())
    if task is None:
        render.message("What is your task?")
        task = _ask_one_of(list(init_templates.TASKS.items()), "task")
    if feedback is None:
        feedback = typer.confirm("Can the grader explain what is wrong with a failed answer?", default=True, err=True)
    return init_templates.InitChoices(model, task, feedback)


def _ask_one_of(choices: list[tuple[str, str]], question: str, others: bool = False) -> str:
    """Ask for a choice by number or name, the first by Enter; with `others` accept any other text too."""
    for line in render.columns([(f"{n}.", *each) for n, each in enumerate(choices, 1)]):
        render.message(f"  {line}")
    names = [name for name, _ in choices]
    while True:
        reply = str(typer.prompt(question, default=names[0], err=True)).strip()
        if reply.isascii() and reply.isdecimal() and 1 <= int(reply) <= len(names):
            return names[int(reply) - 1]
        if reply in names or (others and reply):
            return reply
        render.message(f"enter a number from 1 to {len(names)}, or a name from the list")


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files, or none if one cannot be written or the user interrupts. Raises StorageError."""
    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.core.storage import write_bytes

    created = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)
    except BaseException as error:
        for name in files:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        for each in created:
            with suppress(OSError):
                each.rmdir()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            fix = "choose a writable folder"
            raise StorageError(f"cannot write {folder}: {error.strerror}", fix=fix) from error
        raise
