"""`sdpo solve`: one hard problem, attempt after attempt, until one succeeds; or many, to measure discovery@k."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from sdpo_mlx.core.progress import StartTask
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.training.test_time import Budget, Method, Search
    from sdpo_mlx.types import Problem

NOT_FOUND = 1  # exit code where nothing succeeded, as for whatever was asked for and not reached
DEFAULT_ATTEMPTS = 64


Named = Annotated[
    Literal["sdpo", "best-of-k", "multi-turn", "all"] | None,
    typer.Option("--method", help="Default: sdpo; all with --every-problem."),
]
Keep = Annotated[
    Path | None, typer.Option("--keep", metavar="DIR", help="Save the adapter there; thrown away otherwise.")
]
Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, help="With --every-problem: searches for each problem.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="With --every-problem: the folder of results.")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE|DIR", help="Rows of your own, or a folder with one problem (task code)."),
]
Minutes = Annotated[float | None, typer.Option("--minutes", metavar="M", help="Stop after M minutes as well.")]
Attempts = Annotated[int, typer.Option("--attempts", metavar="N", min=1, help="Answers to try at most.")]


def command(  # noqa: PLR0913 - typer reads the options off the signature
    *,
    model: options.Model = None,
    task: options.TaskName = None,
    data: Data = None,
    problem: Annotated[str | None, typer.Option("--problem", metavar="ID", help="Default: the first one.")] = None,
    method: Named = None,
    attempts: Attempts = DEFAULT_ATTEMPTS,
    minutes: Minutes = None,
    keep: Keep = None,
    every_problem: Annotated[
        bool, typer.Option("--every-problem", help="Measure discovery@k over all problems of the task.")
    ] = False,
    seeds: Seeds = 1,
    out: Out = None,
    group_size: Annotated[int | None, typer.Option("--group-size", metavar="N", help="Attempts in a batch.")] = None,
    max_tokens: options.MaxTokens = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    seed: options.Seed = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Search for an answer to one hard problem, learning from what is said of each attempt.

    Exit code 1 where none succeeds.

    Example: sdpo solve --model tiny --task tiny:hard
    """
    flags = {
        "model.name": model,
        "task.name": task,
        "task.data": data,
        "rollout.group_size": group_size,
        "rollout.max_tokens": max_tokens,
        "train.seed": seed,
        "sandbox.kind": sandbox,
    }
    _agree(every_problem, problem=problem, keep=keep, out=out, method=method, minutes=minutes, seeds=seeds)

    def searched(setup: Components, interrupted: Callable[[], bool]) -> tuple[dict[str, Any], list[str]]:
        budget = _budget(attempts, minutes)
        if every_problem:
            return _measured(setup, method, seeds, budget, out, interrupted)
        with render.status("", plain or as_json) as doing:
            return _solved(setup, problem, method or "sdpo", budget, keep, interrupted, doing)

    content, lines = _opened(config, sets or [], flags, plain or as_json, searched)
    if as_json:
        render.document(content)
    else:
        render.result(lines)
    if not content.get("found", True):
        raise typer.Exit(NOT_FOUND)


def _budget(attempts: int, minutes: float | None) -> Budget:
    from sdpo_mlx.training.test_time import Budget

    return Budget(attempts, minutes and 60 * minutes)


def _opened(
    config: Path | None, sets: list[str], flags: dict[str, Any], plain: bool, searched: Callable[..., Any]
) -> Any:
    """What `searched` finds in the assembled setup; a signal ends it with its exit code."""
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.rl.components import build_components

    cfg = resolve(config, sets, flags).config
    with Interrupt() as interrupt:
        try:
            with render.status(f"opening {cfg.model.name}", plain) as doing:
                setup = build_components(cfg, start_task=doing)
            render.say(setup.model.line())
            render.warn(setup.warnings())
            return searched(setup, interrupt.requested)
        except KeyboardInterrupt:
            render.say("sdpo: interrupted.")
            raise typer.Exit(interrupt.exit_code or 130) from None


def _measured(
    setup: Components, method: str | None, seeds: int, budget: Budget, out: Path | None, interrupted: Callable[[], bool]
) -> tuple[dict[str, Any], list[str]]:
    from sdpo_cli.commands.solve_all import measured

    return measured(setup, methods_of(method or "all"), seeds, budget, out or Path("discovery"), interrupted)


def methods_of(name: str) -> tuple[Method, ...]:
    """One method, or all three."""
    from sdpo_mlx.training.test_time import METHODS

    return METHODS if name == "all" else (name,)  # type: ignore[return-value]


def _agree(every_problem: bool, **given: Any) -> None:
    """Refuse what belongs to the other half of the command."""
    from sdpo_mlx.core.errors import ConfigError

    if given["minutes"] is not None and not given["minutes"] > 0:
        raise ConfigError("a budget of no time", where="--minutes", fix="give a number above 0")
    if every_problem:
        wrong = next((name for name in ("problem", "keep") if given[name] is not None), None)
    else:
        wrong = "out" if given["out"] is not None else "seeds" if given["seeds"] != 1 else None
    if wrong:
        fix = "leave one of the two out" if every_problem else "add --every-problem, or leave it out"
        raise ConfigError(f"--{wrong} means nothing here", where="sdpo solve", fix=fix)
    if given["keep"] is not None and given["method"] not in (None, "sdpo"):
        raise ConfigError("only sdpo has an adapter to keep", where="--keep", fix="leave --method out")


def _solved(
    setup: Components,
    name: str | None,
    method: str,
    budget: Budget,
    keep: Path | None,
    interrupted: Callable[[], bool],
    doing: StartTask,
) -> tuple[dict[str, Any], list[str]]:
    """Search with each method in turn, every one from the untouched model."""
    from sdpo_cli.commands.tasks import find_problem

    from sdpo_mlx.training.kept import check_place
    from sdpo_mlx.training.kept import keep as keep_search
    from sdpo_mlx.training.test_time import solve

    if keep is not None:
        check_place(keep)
    problem, untouched = find_problem(setup.task, name), setup.policy.state()
    searches: dict[str, Search] = {}
    kept: dict[str, list[dict[str, Any]]] = {}
    for each in methods_of(method):
        setup.policy.load_state(untouched)
        view = _View(each, budget.attempts)
        told = doing(f"{each}, attempts")
        searches[each] = solve(setup, problem, each, budget, view.show, interrupted, told)
        kept[each] = view.rows
    content = as_document(setup, problem, searches, kept)
    lines = as_lines(content)
    if keep is not None:
        keep_search(setup, keep, problem, searches["sdpo"], ["sdpo", *sys.argv[1:]])
        content["kept"] = str(keep)
        lines.append(f"kept the adapter in {keep}: sdpo eval {shlex.quote(str(keep))}")
    return content, lines


class _View:
    """Shows each batch as it comes: how many attempts, what its best answer changed, what the environment said."""

    def __init__(self, method: str, most: int) -> None:
        self.method, self.most = method, most
        self.shown: list[str] = []
        self.best = 0.0
        self.rows: list[dict[str, Any]] = []

    def show(self, tried: Any) -> None:
        self.rows += [_row(attempt) for attempt in tried.attempts]
        best = max(tried.attempts, key=lambda each: (each.feedback.success, each.feedback.reward))
        self.best = max(self.best, best.feedback.reward)
        learned = f"  divergence {tried.update.divergence:.3g}" if tried.update else ""
        render.say(f"{self.method}: {tried.attempts[-1].number} of {self.most} attempts  best {self.best:g}{learned}")
        for line in self._changed(best.rollout.text):
            render.say(line)
        said = best.feedback.text.strip() or ("right" if best.feedback.success else "wrong, and no word about why")
        render.say("  the environment:")
        for line in render.untrusted(said, 600, "    "):
            render.say(line)

    def _changed(self, text: str) -> list[str]:
        """The answer, lines that the one before did not have marked with +."""
        before, self.shown = set(self.shown), render.untrusted(text.rstrip(), 2_000, "")
        return [f"  {'+' if line not in before else ' '} {line}" for line in self.shown]


def _row(attempt: Any) -> dict[str, Any]:
    feedback = attempt.feedback
    return {
        "number": attempt.number,
        "answer": attempt.rollout.text,
        "reward": feedback.reward,
        "success": feedback.success,
        "kind": feedback.kind,
        "feedback": feedback.text,
    }


def as_document(
    setup: Components, problem: Problem, searches: dict[str, Search], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Every attempt of every method; `solved` is the number of the first success or null."""
    return {
        "model": setup.model.record(),
        "task": setup.cfg.task.name,
        "problem": problem.id,
        "found": any(search.solved is not None for search in searches.values()),
        "methods": {
            method: {
                "solved": search.solved,
                "attempts": search.attempts,
                "seconds": round(search.seconds, 3),
                "best": _row(search.best),
                "tried": rows[method],
            }
            for method, search in searches.items()
        },
    }


def as_lines(content: dict[str, Any]) -> list[str]:
    """The same for a person: how each method ended, and the best answer of all."""
    methods = content["methods"]
    lines = [f"problem {content['problem']}"]
    for method, found in methods.items():
        solved = found["solved"]
        end = f"solved by attempt {solved}" if solved else f"not solved in {found['attempts']} attempts"
        lines.append(f"{method}: {end} ({render.duration(found['seconds'])})")
    best = max((found["best"] for found in methods.values()), key=lambda row: (row["success"], row["reward"]))
    return [*lines, "the answer:" if best["success"] else "the best answer:", *render.untrusted(best["answer"], 6_000)]
