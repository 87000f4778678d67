"""`sdpo tasks`: list tasks, show one, check a grader, grade one answer."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import completion, options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.tasks.base import Task
    from sdpo_mlx.types import Feedback, Problem

app = typer.Typer(help="List tasks, show one, check one, grade one answer.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="A name from `sdpo tasks list`, or your Python file.", autocompletion=completion.tasks
    ),
]
ProblemId = Annotated[str | None, typer.Option("--problem", metavar="ID", help="Default: the first held-out problem.")]


@app.command("list")
def list_tasks(as_json: options.AsJson = False) -> None:
    """List the shipped tasks.

    Example: sdpo tasks list
    """
    from sdpo_mlx.tasks.registry import DESCRIPTIONS

    content = {"tasks": [{"name": name, "description": text} for name, text in DESCRIPTIONS.items()]}
    render.output(content, render.table(("task", "description"), list(DESCRIPTIONS.items())), as_json)


@app.command("show")
def show(
    task: Name,
    data: options.Data = None,
    problem: ProblemId = None,
    sandbox: options.SandboxKind = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a task: its size, its kinds of feedback, and one problem.

    Example: sdpo tasks show code
    """
    opened = _open(options.settings(task=task, data=data, sandbox=sandbox))
    chosen = find_problem(opened, problem)
    counts = {split: len(opened.problems(split)) for split in ("train", "held_out")}
    references = sum(problem.reference is not None for problem in opened.problems("train"))
    content = {"name": task, "description": opened.description, "feedback": opened.feedback_modes, **counts}
    tools = {"tools": list(chosen.tools)} if chosen.tools else {}
    content["references"] = references
    content["problem"] = {"id": chosen.id, "messages": list(chosen.messages), **tools}
    sizes = f"{counts['train']} train ({references} with a reference answer), {counts['held_out']} held-out"
    lines = [f"{task}: {opened.description}", f"problems: {sizes}"]
    lines += [f"feedback: {', '.join(opened.feedback_modes)} (the first is the default)", f"problem {chosen.id}:"]
    for message in chosen.messages:
        lines += [f"  {message['role']}:", *render.untrusted(message["content"], indent="    ")]
    notes = opened.notes(chosen)
    if notes:
        content["problem"]["notes"] = list(notes)
    lines += [f"  {note}" for note in notes]
    for tool in chosen.tools:
        lines += ["  tool:", *render.untrusted(json.dumps(tool["function"], ensure_ascii=False), indent="    ")]
    render.output(content, lines, as_json)


@app.command("grade")
def grade_answer(  # noqa: PLR0913 - typer reads the options off the signature
    task: Name,
    *,
    problem: ProblemId = None,
    answer: Annotated[str, typer.Option("--answer", metavar="FILE", help="A file with the answer; -: stdin.")] = "-",
    data: options.Data = None,
    model: options.Model = None,
    backend: options.Backend = None,
    sandbox: options.SandboxKind = None,
    sets: options.Sets = None,
    as_json: options.AsJson = False,
) -> None:
    """Grade one answer: reward, success, kind, feedback.

    In a task of several turns it is graded as the first turn.

    Example: sdpo tasks grade code --problem fizzbuzz --answer answer.md
    """
    from sdpo_mlx.core.errors import DataError
    from sdpo_mlx.tasks.grading import grade

    if answer == "-" and sys.stdin is not None and sys.stdin.isatty():
        render.message("reading the answer from this terminal: end it with Ctrl-D on an empty line")
    try:
        content = sys.stdin.buffer.read() if answer == "-" else Path(answer).read_bytes()
    except OSError as error:
        fix = "name a text file, or pipe the answer in: printf 'TEXT' | sdpo tasks grade ... --answer -"
        raise DataError(f"cannot read the answer: {error.strerror}", where=answer, fix=fix) from error
    flags = options.settings(task=task, data=data, model=model, backend=backend, sandbox=sandbox)
    opened = _open(flags, sets, grades=True)
    feedback = grade(opened, find_problem(opened, problem), content.decode("utf-8", errors="replace"))
    lines = [f"reward {feedback.reward:g}  success {'yes' if feedback.success else 'no'}  kind {feedback.kind}"]
    lines += render.untrusted(feedback.text) if feedback.text.strip() else []
    render.output(feedback_record(feedback), lines, as_json)


@app.command("check")
def check(
    task: Name,
    data: options.Data = None,
    model: options.Model = None,
    backend: options.Backend = None,
    sandbox: options.SandboxKind = None,
    sets: options.Sets = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a grader with fake answers and report problems.

    Exit code 3 if there is an error.

    Example: sdpo tasks check ./my_task.py
    """
    from dataclasses import asdict

    from sdpo_mlx.core.errors import DataError
    from sdpo_mlx.tasks.check import check_task

    flags = options.settings(task=task, data=data, model=model, backend=backend, sandbox=sandbox)
    report = check_task(_open(flags, sets, grades=True))
    content = {"ok": report.ok, **report.counts, "gradings": 2 * len(report.trials)}
    content["oddities"] = [asdict(each) for each in report.oddities]
    counts = f"{report.counts['train']} train and {report.counts['held_out']} held-out problems"
    lines = [f"{counts}, {len(report.trials)} fake answers graded twice"]
    lines += [f"{each.level}: {each.what}. {each.fix}." for each in report.oddities]
    render.output(content, [*lines, *([] if report.oddities else ["no problems found"])], as_json)
    if not report.ok:
        raise typer.Exit(DataError.exit_code)


def feedback_record(feedback: Feedback) -> dict[str, Any]:
    """Feedback as JSON."""
    return {"reward": feedback.reward, "success": feedback.success, "kind": feedback.kind, "feedback": feedback.text}


def find_problem(task: Task, name: str | None) -> Problem:
    """Return a problem of either split by its id, or the first; raises ConfigError with the closest id."""
    from sdpo_mlx.core.errors import ConfigError

    problems = [*task.problems("held_out"), *task.problems("train")]
    found = next((each for each in problems if name is None or each.id == name), None)
    if found is None:
        near = get_close_matches(name or "", [each.id for each in problems], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"use an id such as {problems[0].id}" if problems else ""
        raise ConfigError(f"task {task.name} has no problem {name!r}", where="--problem", fix=hint)
    return found


def _open(flags: dict[str, Any], sets: list[str] | None = None, *, grades: bool = False) -> Task:
    """Open the task; if it `grades` with a judge, serve a frozen base model as in a run."""
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.tasks.registry import open_task

    found = resolve(None, sets or [], flags)
    task = open_task(found.config, grades=grades).task
    if grades and task.needs_model:
        from sdpo_mlx.backends.preflight import checked_model

        if found.origins["model.name"] == "default":
            fix = "add --model NAME for a frozen base, or --set judge.endpoint=URL for a server"
            raise ConfigError(f"task {found.config.task.name} needs a judge", where="judge.endpoint", fix=fix)
        model = found.config.model
        task.start(checked_model(model.name, backend=model.backend))
    return task
