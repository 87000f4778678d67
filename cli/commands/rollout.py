"""`sdpo rollout`: what the student saw and answered, what the grader said, and what the self-teacher sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.rl.distillation import Batch
    from sdpo_mlx.rl.rollouts import Sampled
    from sdpo_mlx.types import Demonstration, Problem

SHOWN = 6_000  # characters of one text on a terminal; --json has all of it


def command(  # noqa: PLR0913 - typer reads the options off the signature
    *,
    model: options.Model = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="A run folder, with its adapter.")] = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problem: Annotated[str | None, typer.Option("--problem", metavar="ID", help="Default: the first one.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", min=1, help="Answers; default: rollout.group_size.")
    ] = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    seed: options.Seed = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Sample answers to one problem and show what student, grader and self-teacher see.

    Example: sdpo rollout --model tiny --task tiny --n 4
    """
    from sdpo_cli.commands.tasks import find_problem

    from sdpo_mlx.core.interrupt import Interrupt

    flags = {
        "model.name": model,
        "task.name": task,
        "task.data": data,
        "rollout.group_size": n,
        "train.seed": seed,
        "sandbox.kind": sandbox,
    }
    with Interrupt() as interrupt:
        try:
            setup = _opened(run, config, sets or [], flags, plain)
            content = _observed(setup, find_problem(setup.task, problem), interrupt.requested)
        except KeyboardInterrupt:
            render.say("sdpo: interrupted.")
            raise typer.Exit(interrupt.exit_code or 130) from None
    if as_json:
        render.document(content)
    else:
        render.result(as_lines(content))


def _opened(run: Path | None, config: Path | None, sets: list[str], flags: dict[str, Any], plain: bool) -> Components:
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.targets import open_target, run_config

    if run is not None and (config is not None or flags["model.name"] is not None):
        raise ConfigError("a run has a model and settings of its own", where="--run", fix="leave --model and -c out")
    cfg = run_config(run, sets, flags) if run is not None else resolve(config, sets, flags).config
    with render.status(f"opening {cfg.model.name}", plain) as doing:
        setup = open_target(str(run), cfg, doing=doing) if run is not None else build_components(cfg, start_task=doing)
    render.say(setup.model.line())
    render.warn(setup.warnings())
    return setup


def _observed(setup: Components, problem: Problem, interrupted: Any) -> dict[str, Any]:
    """One group, sampled and turned into samples exactly as the first step of a training run would."""
    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.core.seeding import derive
    from sdpo_mlx.rl.distillation import distillation_batch
    from sdpo_mlx.rl.rollouts import rollout_seeds, sample

    cfg, chat = setup.cfg, setup.chat
    rollout = cfg.rollout
    sampling = SamplingParams(rollout.max_tokens, rollout.temperature, rollout.top_p, chat.eos_ids)
    seeds = rollout_seeds("rollout", cfg.train.seed, 0, [problem], rollout.group_size)
    found = sample(setup.policy, setup.task, chat, [problem], sampling, seeds, interrupted)
    batch = distillation_batch(
        found.groups,
        chat,
        cfg.teacher,
        cfg.objective,
        context_length=setup.policy.info.context_length,
        seed=derive(cfg.train.seed, 0),
    )
    return as_document(setup, problem, found, batch)


def as_document(setup: Components, problem: Problem, found: Sampled, batch: Batch) -> dict[str, Any]:
    """Everything, uncut; `teacher` is null where there is no context, and `skip` then says why."""
    chat = setup.chat
    reasons = {skip.index: skip.reason for skip in (*found.skips, *batch.skips)}
    rows = []
    for group in found.groups:
        for index, (rollout, verdict) in enumerate(zip(group.rollouts, group.feedback, strict=True)):
            context = batch.contexts.get((problem.id, index))
            teacher = context and {
                "messages": list(context.messages),
                "rendered": chat.reveal(chat.render(context.messages, tools=problem.tools)),
                "demonstration": _source(context.demonstration),
                "feedback": context.feedback,
            }
            rows.append(
                {
                    "answer": rollout.text,
                    "finish": rollout.finish,
                    "tokens": int(rollout.ids_T.size),
                    "seed": rollout.seed,
                    "reward": verdict.reward,
                    "success": verdict.success,
                    "kind": verdict.kind,
                    "feedback": verdict.text,
                    "teacher": teacher,
                    "skip": reasons.get(index),
                }
            )
    student = {
        "messages": list(problem.messages),
        "rendered": chat.reveal(chat.render(problem.messages, tools=problem.tools)),
    }
    head = {"model": setup.model.record(), "task": setup.cfg.task.name, "problem": problem.id, "student": student}
    return {**head, "skip": reasons.get(-1), "rollouts": rows}


def _source(demonstration: Demonstration | None) -> int | str | None:
    from sdpo_mlx.types import FROM_DATASET

    if demonstration is None:
        return None
    return "dataset" if demonstration.source == FROM_DATASET else demonstration.source


def as_lines(content: dict[str, Any]) -> list[str]:
    """The same for a person; a context that several answers share is shown once."""
    lines = [f"problem {content['problem']}", "the student sees:", *_text(content["student"]["rendered"])]
    if content["skip"]:
        lines.append(f"not sampled: {content['skip']}, the prompt leaves no room for an answer")
    shown: dict[str, int] = {}
    for index, row in enumerate(content["rollouts"]):
        end = "cut off" if row["finish"] == "length" else "finished"
        lines += ["", f"answer {index} ({row['tokens']} tokens, {end}):", *_text(row["answer"])]
        said = ", it says:" if row["feedback"].strip() else ""
        lines.append(f"the grader: reward {row['reward']:g}, {row['kind']}{said}")
        lines += _text(row["feedback"]) if said else []
        lines += _teacher(row, index, shown)
    return lines


def _teacher(row: dict[str, Any], index: int, shown: dict[str, int]) -> list[str]:
    teacher = row["teacher"]
    if teacher is None:
        return [f"the self-teacher sees nothing to go by: {WHY.get(row['skip'], row['skip'])}"]
    if teacher["rendered"] in shown:
        return [f"the self-teacher sees the same as for answer {shown[teacher['rendered']]}"]
    shown[teacher["rendered"]] = index
    shown_as = {None: "", "dataset": " (the row's own reference as the solution)"}
    source = shown_as.get(teacher["demonstration"], f" (answer {teacher['demonstration']} as the solution)")
    return [f"the self-teacher sees{source}:", *_text(teacher["rendered"])]


WHY = {
    "no_signal": "no demonstration and no feedback (no_signal)",
    "too_long": "its prompt does not fit (too_long)",
    "no_tokens": "the answer is empty (no_tokens)",
    "grader_error": "the grader itself failed (grader_error)",
    None: "this objective learns from the reward alone",
}


def _text(text: str) -> list[str]:
    return render.untrusted(text.rstrip(), SHOWN)
