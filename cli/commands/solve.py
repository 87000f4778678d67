"""`sdpo solve`: test-time training on one problem until a rollout succeeds; or on many, to measure discovery@k."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from sdpo_cli import options
from sdpo_cli.commands.opening import interruptible, open_components
from sdpo_cli.commands.tasks import feedback_record, find_problem
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sdpo_mlx.core.progress import StartTask
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.training.test_time import Budget, Method, Search
    from sdpo_mlx.types import Problem

EXIT_NOT_SOLVED = 1
DEFAULT_ATTEMPTS = 64

MethodName = Annotated[
    Literal["sdpo", "best-of-k", "multi-turn", "all"] | None,
    typer.Option("--method", help="Default: sdpo; all with --every-problem."),
]
Keep = Annotated[Path | None, typer.Option("--keep", metavar="DIR", help="Save the adapter; default: discard it.")]
EveryProblem = Annotated[bool, typer.Option("--every-problem", help="Measure discovery@k over all problems.")]
Seeds = Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="With --every-problem: searches per problem.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="With --every-problem: folder for results.")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE|DIR", help="Your problems, or a folder with one problem (task code)."),
]
Minutes = Annotated[float | None, typer.Option("--minutes", metavar="M", help="Stop after M minutes.")]
Attempts = Annotated[int, typer.Option("--attempts", metavar="N", min=1, help="Maximum rollouts.")]


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.AnyTarget = None,
    *,
    model: options.Model = None,
    run: options.Run = None,
    task: options.TaskName = None,
    data: Data = None,
    problem: options.ProblemId = None,
    method: MethodName = None,
    attempts: Attempts = DEFAULT_ATTEMPTS,
    minutes: Minutes = None,
    keep: Keep = None,
    every_problem: EveryProblem = False,
    seeds: Seeds = 1,
    out: Out = None,
    group_size: options.GroupSize = None,
    max_tokens: options.MaxTokens = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Solve one hard problem by training on the feedback to each attempt.

    Exit code 1 if no attempt succeeds. --group-size is the number of attempts per step.

    Example: sdpo solve --model tiny --task tiny:hard
    """
    from sdpo_cli.commands.solve_all import measured

    from sdpo_mlx.runs.targets import named_config, run_or_none
    from sdpo_mlx.training.test_time import METHODS, Budget

    flags = options.settings(task=task, data=data, group_size=group_size, max_tokens=max_tokens)
    flags |= options.settings(backend=backend, seed=seed, sandbox=sandbox)
    _check(every_problem, problem=problem, keep=keep, out=out, method=method, minutes=minutes, seeds=seeds)
    name, plain = options.one_target(target, model, run), plain or as_json
    cfg = named_config(name, config, sets or [], flags)
    with interruptible() as interrupt:
        components = open_components(cfg, plain, run_or_none(name))
        components.start_from_student()
        budget, interrupted = Budget(attempts, minutes and 60 * minutes), interrupt.requested
        chosen_method = method or ("all" if every_problem else "sdpo")
        methods = METHODS if chosen_method == "all" else (chosen_method,)
        if every_problem:
            content, lines = measured(components, methods, seeds, budget, out, interrupted)
        else:
            with render.status("", plain) as start_task:
                chosen = find_problem(components.task, problem)
                content, lines = _solved(components, chosen, methods, budget, keep, interrupted, start_task)
    render.output(content, lines, as_json)
    if not content.get("found", True):
        raise typer.Exit(EXIT_NOT_SOLVED)


def _check(every_problem: bool, **given: Any) -> None:
    """Raise ConfigError for options that need --every-problem, or exclude it."""
    from sdpo_mlx.core.errors import ConfigError

    if given["minutes"] is not None and not given["minutes"] > 0:
        raise ConfigError("the time limit is not positive", where="--minutes", fix="use a number above 0")
    if every_problem:
        wrong = next((name for name in ("problem", "keep") if given[name] is not None), None)
    else:
        wrong = "out" if given["out"] is not None else "seeds" if given["seeds"] != 1 else None
    if wrong:
        what = f"--{wrong} {'cannot be combined with' if every_problem else 'needs'} --every-problem"
        raise ConfigError(what, where="sdpo solve", fix="remove one of them" if every_problem else "add it")
    if given["keep"] is not None and given["method"] not in (None, "sdpo"):
        raise ConfigError("only method sdpo trains an adapter", where="--keep", fix="remove --method")


def _solved(
    components: Components,
    problem: Problem,
    methods: Sequence[Method],
    budget: Budget,
    keep: Path | None,
    interrupted: Callable[[], bool],
    start_task: StartTask,
) -> tuple[dict[str, Any], list[str]]:
    """Search with each method, each from the initial weights."""
    from sdpo_mlx.training.test_time import check_output, save_search, solve

    if keep is not None:
        check_output(keep)
    initial = components.policy.state()
    searches: dict[str, Search] = {}
    attempts: dict[str, list[dict[str, Any]]] = {}
    for each in methods:
        components.policy.load_state(initial)
        log = _AttemptLog(each, budget.attempts)
        on_progress = start_task(f"{each}, attempts")
        searches[each] = solve(components, problem, each, budget, log.show, interrupted, on_progress)
        attempts[each] = log.rows
    content = as_document(components, problem, searches, attempts)
    lines = as_lines(content)
    if keep is not None:
        save_search(components, keep, problem, searches["sdpo"], ["sdpo", *sys.argv[1:]])
        content["kept"] = str(keep)
        lines.append(f"saved the adapter in {keep}; next: sdpo eval {shlex.quote(str(keep))}")
    return content, lines


@dataclass
class _AttemptLog:
    """Prints each batch: attempts so far, the best answer with its changed lines, and its feedback."""

    method: str
    limit: int
    shown: list[str] = field(default_factory=list)
    best: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def show(self, tried: Any) -> None:
        self.rows += [_row(attempt) for attempt in tried.attempts]
        best = max(tried.attempts, key=lambda each: (each.feedback.success, each.feedback.reward))
        self.best = max(self.best, best.feedback.reward)
        learned = f"  divergence {tried.update.divergence:.3g}" if tried.update else ""
        head = f"{self.method}: {tried.attempts[-1].number} of {self.limit} attempts  best {self.best:g}{learned}"
        feedback = best.feedback.text.strip() or ("correct" if best.feedback.success else "incorrect, no feedback")
        # lines that are not in the previous answer are marked with +
        before, self.shown = set(self.shown), render.untrusted(best.rollout.text.rstrip(), 2_000, "")
        answer = [f"  {'+' if line not in before else ' '} {line}" for line in self.shown]
        for line in (head, *answer, "  feedback:", *render.untrusted(feedback, 600, "    ")):
            render.message(line)


def _row(attempt: Any) -> dict[str, Any]:
    return {"number": attempt.number, "answer": attempt.rollout.text, **feedback_record(attempt.feedback)}


def as_document(
    components: Components, problem: Problem, searches: dict[str, Search], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Every attempt of every method; `solved` is the number of the first success or null."""
    return {
        "model": components.model.record(),
        "task": components.cfg.task.name,
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
    """Return the lines of the text output: the result of each method, and the best answer."""
    methods = content["methods"]
    lines = [f"problem {content['problem']}"]
    for method, found in methods.items():
        solved = found["solved"]
        end = f"solved by attempt {solved}" if solved else f"not solved in {found['attempts']} attempts"
        lines.append(f"{method}: {end} ({render.duration(found['seconds'])})")
    best = max((found["best"] for found in methods.values()), key=lambda row: (row["success"], row["reward"]))
    return [*lines, "the answer:" if best["success"] else "the best answer:", *render.untrusted(best["answer"], 6_000)]
