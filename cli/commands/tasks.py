"""`sdpo tasks`: which tasks there are, what one looks like, and what its grader says to an answer."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sdpo_cli import completion, options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.tasks.base import Task
    from sdpo_mlx.types import Problem

app = typer.Typer(help="List tasks, show one, check one, grade one answer.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="A name of `sdpo tasks list`, or a file of yours.", autocompletion=completion.tasks
    ),
]
ProblemId = Annotated[str | None, typer.Option("--problem", metavar="ID", help="Default: the first held-out one.")]


@app.command("list")
def list_tasks(as_json: options.AsJson = False) -> None:
    """Show the tasks, one a line.

    Example: sdpo tasks list
    """
    from sdpo_mlx.tasks.registry import DESCRIPTIONS

    if as_json:
        render.document({"tasks": [{"name": name, "description": text} for name, text in DESCRIPTIONS.items()]})
    else:
        render.result(render.table(("task", "what it is"), list(DESCRIPTIONS.items())))


@app.command("show")
def show(
    task: Name,
    data: options.Data = None,
    problem: ProblemId = None,
    sandbox: options.SandboxKind = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a task: its size, what its feedback can say, and one problem.

    Example: sdpo tasks show code
    """
    opened = _open(task, data, sandbox)
    chosen = find_problem(opened, problem)
    counts = {split: len(opened.problems(split)) for split in ("train", "held_out")}
    references = sum(problem.reference is not None for problem in opened.problems("train"))
    if as_json:
        content = {"name": task, "description": opened.description, "feedback": opened.feedback_modes, **counts}
        tools = {"tools": list(chosen.tools)} if chosen.tools else {}
        content["references"] = references
        render.document({**content, "problem": {"id": chosen.id, "messages": list(chosen.messages), **tools}})
        return
    sizes = f"{counts['train']} train ({references} with a reference answer), {counts['held_out']} held-out"
    lines = [f"{task}: {opened.description}", f"problems: {sizes}"]
    lines += [f"feedback: {', '.join(opened.feedback_modes)} (the first is the default)", f"problem {chosen.id}:"]
    for message in chosen.messages:
        lines += [f"  {message['role']}:", *render.untrusted(message["content"], indent="    ")]
    for tool in chosen.tools:
        lines += ["  tool:", *render.untrusted(json.dumps(tool["function"], ensure_ascii=False), indent="    ")]
    render.result(lines)


@app.command("grade")
def grade_answer(
    task: Name,
    *,
    problem: ProblemId = None,
    answer: Annotated[str, typer.Option("--answer", metavar="FILE", help="The answer's text; - reads stdin.")] = "-",
    data: options.Data = None,
    sandbox: options.SandboxKind = None,
    sets: options.Sets = None,
    as_json: options.AsJson = False,
) -> None:
    """Grade one answer: reward, success, kind, feedback.

    In a task of several turns it counts as the first one.

    Example: sdpo tasks grade code --problem fizzbuzz --answer answer.md
    """
    from sdpo_mlx.tasks.grading import grade

    text = _read(answer)
    opened = _open(task, data, sandbox, sets, grades=True)
    verdict = grade(opened, find_problem(opened, problem), text)
    if as_json:
        content = {"reward": verdict.reward, "success": verdict.success}
        render.document({**content, "kind": verdict.kind, "feedback": verdict.text})
        return
    lines = [f"reward {verdict.reward:g}  success {'yes' if verdict.success else 'no'}  kind {verdict.kind}"]
    render.result([*lines, *(render.untrusted(verdict.text) if verdict.text.strip() else [])])


@app.command("check")
def check(
    task: Name,
    data: options.Data = None,
    sandbox: options.SandboxKind = None,
    sets: options.Sets = None,
    as_json: options.AsJson = False,
) -> None:
    """Try a grader on fake answers, say what is odd.

    Exit code 3 where something is at fault.

    Example: sdpo tasks check ./my_task.py
    """
    from dataclasses import asdict

    from sdpo_mlx.core.errors import DataError
    from sdpo_mlx.tasks.check import check_task

    report = check_task(_open(task, data, sandbox, sets, grades=True))
    if as_json:
        found = [asdict(each) for each in report.oddities]
        render.document({"ok": report.ok, **report.counts, "gradings": 2 * len(report.trials), "oddities": found})
    else:
        head = f"{report.counts['train']} train and {report.counts['held_out']} held-out problems"
        lines = [f"{head}, {len(report.trials)} fake answers graded twice"]
        lines += [f"{each.level}: {each.what}. {each.fix}." for each in report.oddities]
        render.result([*lines, *([] if report.oddities else ["nothing odd found"])])
    if not report.ok:
        raise typer.Exit(DataError.exit_code)


def find_problem(task: Task, name: str | None) -> Problem:
    """A problem of either split by its id, or the first; raises ConfigError with the nearest id."""
    from sdpo_mlx.core.errors import ConfigError

    problems = [*task.problems("held_out"), *task.problems("train")]
    found = next((each for each in problems if name is None or each.id == name), None)
    if found is None:
        near = get_close_matches(name or "", [each.id for each in problems], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"an id is, for example, {problems[0].id}" if problems else ""
        raise ConfigError(f"task {task.name} has no problem {name!r}", where="--problem", fix=hint)
    return found


def _open(
    name: str, data: str | None, sandbox: str | None, sets: list[str] | None = None, *, grades: bool = False
) -> Task:
    """The task alone; where it `grades` by a judge, a frozen base is served as in a run."""
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.tasks.registry import open_task

    found = resolve(None, sets or [], {"task.name": name, "task.data": data, "sandbox.kind": sandbox})
    task = open_task(found.config).task
    if grades and getattr(task, "needs_base", False):
        from sdpo_mlx.models import resolve as models
        from sdpo_mlx.tasks.judge.server import serve_where_needed

        if found.origins["model.name"] == "default":
            fix = "give --set model.name=NAME for a frozen base, or --set judge.endpoint=URL for a server"
            raise ConfigError(f"task {name} needs a judge", where="judge.endpoint", fix=fix)
        serve_where_needed(task, models.resolve(found.config.model.name))
    return task


def _read(answer: str) -> str:
    from sdpo_mlx.core.errors import DataError

    try:
        content = sys.stdin.buffer.read() if answer == "-" else Path(answer).read_bytes()
    except OSError as error:
        fix = "name a text file, or pipe the answer in: printf 'TEXT' | sdpo tasks grade ... --answer -"
        raise DataError(f"cannot read the answer: {error.strerror}", where=answer, fix=fix) from error
    return content.decode("utf-8", errors="replace")
