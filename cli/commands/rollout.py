"""`sdpo rollout`: the student's prompt and rollouts, the grader's feedback, and the self-teacher's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdpo_cli import options
from sdpo_cli.commands.opening import interruptible, open_components
from sdpo_cli.commands.tasks import feedback_record, find_problem
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.types import Problem

SHOWN = 6_000  # characters of one text on a terminal; --json has all of it


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.AnyTarget = None,
    *,
    model: options.Model = None,
    run: options.Run = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problem: options.ProblemId = None,
    group_size: options.GroupSize = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Show rollouts, grades and teacher context for one problem.

    Example: sdpo rollout --model tiny --task tiny --group-size 4
    """
    from sdpo_mlx.runs.targets import named_config, run_or_none

    flags = options.settings(task=task, data=data, group_size=group_size, backend=backend, seed=seed, sandbox=sandbox)
    name = options.one_target(target, model, run)
    cfg = named_config(name, config, sets or [], flags)
    with interruptible() as interrupt:
        components = open_components(cfg, plain, run_or_none(name))
        content = sampled(components, find_problem(components.task, problem), interrupt.requested)
    render.output(content, as_lines(content), as_json)


def sampled(components: Components, problem: Problem, interrupted: Any) -> dict[str, Any]:
    """Sample one group and build its teacher contexts as the first step of training does; return all of it.

    `teacher` is null if there is no context, and `skip` is then the reason.
    """
    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.core.seeding import derive
    from sdpo_mlx.rl.distillation import distillation_batch
    from sdpo_mlx.rl.rollouts import rollout_seeds, sample
    from sdpo_mlx.types import FROM_DATASET

    cfg, chat, policy = components.cfg, components.chat, components.policy
    how = cfg.rollout
    sampling = SamplingParams(how.max_tokens, how.temperature, how.top_p, chat.eos_ids, at_stop_text=chat.at_stop_text)
    seeds = rollout_seeds("rollout", cfg.train.seed, 0, [problem], how.group_size)
    found = sample(policy, components.task, chat, [problem], sampling, seeds, interrupted)
    fit = {"context_length": policy.info.context_length, "seed": derive(cfg.train.seed, 0)}
    batch = distillation_batch(found.groups, chat, cfg.teacher, cfg.objective, **fit)
    reasons = {skip.index: skip.reason for skip in (*found.skips, *batch.skips)}

    def prompt(messages: Sequence[Any]) -> dict[str, Any]:
        rendered = components.chat.reveal(components.chat.render(messages, tools=problem.tools))
        return {"messages": list(messages), "rendered": rendered}

    rows = []
    for group in found.groups:
        for index, (rollout, feedback) in enumerate(zip(group.rollouts, group.feedback, strict=True)):
            context = batch.contexts.get((problem.id, index))
            teacher = None
            if context is not None:
                source = context.demonstration.source if context.demonstration else None
                source = "dataset" if source == FROM_DATASET else source
                teacher = {**prompt(context.messages), "demonstration": source, "feedback": context.feedback}
            rows.append(
                {
                    "answer": rollout.text,
                    "finish": rollout.finish,
                    "tokens": int(rollout.ids_T.size),
                    "seed": rollout.seed,
                    **feedback_record(feedback),
                    "teacher": teacher,
                    "skip": reasons.get(index),
                }
            )
    return {
        "model": components.model.record(),
        "task": components.cfg.task.name,
        "problem": problem.id,
        "student": prompt(problem.messages),
        "skip": reasons.get(-1),
        "rollouts": rows,
    }


def as_lines(content: dict[str, Any]) -> list[str]:
    """Return the lines of the text output; a context that several rollouts share is shown once."""
    lines = [f"problem {content['problem']}", "student prompt:", *_text(content["student"]["rendered"])]
    if content["skip"]:
        lines.append(f"not sampled: the prompt leaves no tokens for a rollout ({content['skip']})")
    shown: dict[str, int] = {}
    for index, row in enumerate(content["rollouts"]):
        end = "truncated" if row["finish"] == "length" else "finished"
        lines += ["", f"rollout {index} ({row['tokens']} tokens, {end}):", *_text(row["answer"])]
        has_feedback = bool(row["feedback"].strip())
        lines.append(f"grade: reward {row['reward']:g}, {row['kind']}{', feedback:' if has_feedback else ''}")
        lines += _text(row["feedback"]) if has_feedback else []
        lines += _teacher(row, index, shown)
    return lines


def _teacher(row: dict[str, Any], index: int, shown: dict[str, int]) -> list[str]:
    teacher = row["teacher"]
    if teacher is None:
        return [f"no teacher context: {WHY.get(row['skip'], row['skip'])}"]
    if teacher["rendered"] in shown:
        return [f"teacher context: the same as for rollout {shown[teacher['rendered']]}"]
    shown[teacher["rendered"]] = index
    sources = {None: "", "dataset": " (solution: the reference answer of the dataset)"}
    solution = sources.get(teacher["demonstration"], f" (solution: rollout {teacher['demonstration']})")
    return [f"teacher context{solution}:", *_text(teacher["rendered"])]


WHY = {
    "no_signal": "no demonstration and no feedback (no_signal)",
    "all_correct": "every rollout of the group succeeded (all_correct)",
    "too_long": "it does not fit (too_long)",
    "no_tokens": "the rollout is empty (no_tokens)",
    "grader_error": "the grader failed (grader_error)",
    None: "this objective uses rewards only",
}


def _text(text: str) -> list[str]:
    return render.untrusted(text.rstrip(), SHOWN)
