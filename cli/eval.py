"""`sdpo eval TARGET`: avg@n and pass@k on held-out problems, with intervals and problem by problem."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options, render

if TYPE_CHECKING:
    from sdpo_mlx.evaluate import Evaluation
    from sdpo_mlx.setup import Setup


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A run folder, or a model.")],
    *,
    adapter: Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="An adapter for the model.")] = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problems: Annotated[int | None, typer.Option("--problems", metavar="N", help="Only the first N.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Answers a problem.")] = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Score a run, a model, or a model with an adapter on held-out problems.

    Example: sdpo eval runs/tiny-tiny-seed0 --samples 8
    """
    from sdpo_mlx.interrupt import Interrupt
    from sdpo_mlx.targets import open_target, target_config

    flags = {
        "task.name": task,
        "task.data": data,
        "eval.problems": problems,
        "eval.samples": samples,
        "train.seed": seed,
        "sandbox.kind": sandbox,
    }
    cfg, begun = target_config(target, adapter, sets or [], flags), time.monotonic()
    with Interrupt() as interrupt:
        try:
            with render.status(f"opening {cfg.model.name}", plain):
                setup = open_target(target, cfg, adapter)
            render.say(setup.model.line())
            render.warn(setup.warnings())
            with render.status(f"sampling {cfg.eval.samples} answers a problem", plain):
                found = _evaluated(setup, interrupt.requested)
        except KeyboardInterrupt:
            render.say("sdpo: interrupted.")
            raise typer.Exit(interrupt.exit_code or 130) from None
    content = as_document(target, setup, found, time.monotonic() - begun)
    if as_json:
        render.document(content)
    else:
        render.result(as_lines(content))


def _evaluated(setup: Setup, interrupted: Any) -> Evaluation:
    from sdpo_mlx.errors import DataError
    from sdpo_mlx.evaluate import Exam, evaluate, held_out, sampling_params

    cfg = setup.cfg
    problems = held_out(setup.task, cfg.eval)
    if not problems:
        fix = "give some rows of the data the split held_out"
        raise DataError("the task has no held-out problems", where=cfg.task.data or cfg.task.name, fix=fix)
    sampling = sampling_params(cfg.eval, cfg.rollout, setup.chat)
    # "final": the seeds of the run's own before and after
    exam = Exam(problems, sampling, cfg.eval.samples, cfg.train.seed, "final")
    return evaluate(setup.policy, setup.task, setup.chat, exam, interrupted)


def as_document(target: str, setup: Setup, found: Evaluation, seconds: float) -> dict[str, Any]:
    """Everything that was measured; scores are shares of 1."""
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < found.samples] + [found.samples]
    return {
        "target": target,
        "model": setup.model.record(),
        "task": setup.cfg.task.name,
        **found.event(),
        **{f"pass@{k}": found.pass_at(k) for k in ks},
        "samples": found.samples,
        "seed": found.seed,
        "seconds": round(seconds, 3),
        "problems": [
            {"id": p.id, "family": p.family, "rewards": list(p.rewards), "successes": list(p.successes)}
            for p in found.problems
        ],
    }


def as_lines(content: dict[str, Any]) -> list[str]:
    """The same for a person."""
    ks = sorted(int(name.removeprefix("pass@")) for name in content if name.startswith("pass@"))
    score = f"{render.percent(content['score'])}{render.span(content['low'], content['high'])}"
    rows = [
        (p["id"], f"{sum(p['successes'])}/{len(p['successes'])}", f"{_mean(p['rewards']):.2f}", p["family"])
        for p in content["problems"]
    ]
    return [
        *render.table(("problem", "solved", "reward", "family"), rows),
        "",
        f"{content['target']} on {content['task']}: {content['n']} problems, {content['samples']} answers each",
        f"avg@{content['samples']}  {score}, 95 % interval",
        *(f"pass@{k}  {render.percent(content[f'pass@{k}'])}" for k in ks),
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
