"""`sdpo probe`: measure before training whether the self-teacher is better than the student, and with which context."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.commands.opening import interruptible, open_components
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdpo_mlx.config import Config
    from sdpo_mlx.evaluation.probe import ContextResult, Probe
    from sdpo_mlx.evaluation.probe_verdict import ProbeVerdict
    from sdpo_mlx.rl.components import Components

PROBLEMS, ROLLOUTS = 32, 4

Problems = Annotated[int, typer.Option("--problems", metavar="N", min=1, help="Training problems to sample.")]
GroupSize = Annotated[
    int, typer.Option("--group-size", metavar="N", min=1, help="Rollouts per problem, of student and self-teacher.")
]
EveryTemplate = Annotated[
    bool, typer.Option("--every-template", help="Try each template with each context, not only with the best one.")
]
Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="FILE", help="Write the recommended settings, for `sdpo train -c FILE`."),
]


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.AnyTarget = None,
    *,
    model: options.Model = None,
    run: options.Run = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problems: Problems = PROBLEMS,
    group_size: GroupSize = ROLLOUTS,
    every_template: EveryTemplate = False,
    write: Write = None,
    max_tokens: options.MaxTokens = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Check before training whether the self-teacher beats the student.

    Example: sdpo probe --model tiny --task tiny --problems 16
    """
    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.evaluation.probe import choose_problems, probe
    from sdpo_mlx.evaluation.probe_verdict import judge
    from sdpo_mlx.runs.targets import named_config, run_or_none

    flags = options.settings(task=task, data=data, max_tokens=max_tokens)
    flags |= options.settings(backend=backend, seed=seed, sandbox=sandbox)
    name = options.one_target(target, model, run)
    cfg = named_config(name, config, sets or [], flags)
    # before anything is sampled
    if write is not None and (not write.name or not write.parent.is_dir() or (write.exists() and not write.is_file())):
        raise StorageError("cannot write here", where=str(write), fix="name a file in an existing folder")
    with interruptible() as interrupt:
        components, begun = open_components(cfg, plain, run_or_none(name)), time.monotonic()
        chosen = choose_problems(components.task, problems, cfg.train.seed)
        render.message(cost_line(components, len(chosen), group_size, every_template))
        with render.status("", plain) as start_task:
            found = probe(
                components,
                chosen,
                group_size,
                every_template=every_template,
                interrupted=interrupt.requested,
                start_task=start_task,
            )
    conclusion = judge(found, cfg)
    if write is not None:
        save_settings(write, cfg, conclusion)
    document = as_document(components, found, conclusion, time.monotonic() - begun)
    render.output(document, as_lines(document, write), as_json)


def cost_line(components: Components, problems: int, rollouts: int, every_template: bool) -> str:
    """Return what the probe will sample at most, and on MLX about how long that takes."""
    from sdpo_mlx.config.templates import TEMPLATES
    from sdpo_mlx.evaluation.probe import KINDS

    others = len(TEMPLATES) - 1
    # The attempts, the student again, and each context.
    passes = 2 + len(KINDS) + (len(KINDS) * others if every_template else others)
    most = passes * problems * rollouts
    tokens = most * components.cfg.rollout.max_tokens
    line = f"probe: at most {render.plural(most, 'rollout')} of {render.plural(problems, 'problem')}, {tokens:,} tokens"
    seconds = passes * pass_seconds(components, problems, rollouts)
    return f"{line}; about {render.duration(seconds)} here if all are of full length" if seconds else line


def pass_seconds(components: Components, problems: int, rollouts: int) -> float:
    """Return the estimated time of sampling so many rollouts with a context; 0 on torch, which has no estimate."""
    from sdpo_cli.commands.plan import planned

    cfg = components.cfg
    if components.policy.info.backend != "mlx":
        return 0.0
    rollout = cfg.rollout.model_copy(update={"problems_per_step": problems, "group_size": rollouts})
    seconds = planned(cfg.model_copy(update={"rollout": rollout}), None, None)["seconds"]
    return float(seconds["prefill"] + seconds["decode"])


def save_settings(path: Path, cfg: Config, conclusion: ProbeVerdict) -> None:
    """Write the configuration with the recommended settings as YAML."""
    from sdpo_mlx.config.resolve import dump_yaml
    from sdpo_mlx.core.storage import write_text

    for key, value in conclusion.settings.items():
        section, _, name = key.partition(".")
        cfg = cfg.model_copy(update={section: getattr(cfg, section).model_copy(update={name: value})})
    write_text(path, f"# sdpo probe: {conclusion.kind}. {conclusion.sentence}\n{dump_yaml(cfg)}")


def as_document(components: Components, found: Probe, conclusion: ProbeVerdict, seconds: float) -> dict[str, Any]:
    """Return the result as a JSON document; shares are of 1, shifts in nats."""
    success, (low, high) = found.student_score
    return {
        "model": components.model.record(),
        "task": components.cfg.task.name,
        "seed": found.seed,
        "problems": len(found.student),
        "rollouts": found.rollouts,
        "student": {"success": success, "low": low, "high": high},
        "contexts": [_context(result, conclusion) for result in found.results],
        "left_out": dict(found.left_out),
        "verdict": conclusion.kind,
        "sentence": conclusion.sentence,
        "settings": dict(conclusion.settings),
        "needed": conclusion.problems,
        "answers": found.answers,
        "tokens": found.tokens,
        "seconds": round(seconds, 3),
    }


def _context(result: ContextResult, conclusion: ProbeVerdict) -> dict[str, Any]:
    shift, gain = result.shift, result.gain
    return {
        "name": result.context.name,
        "template": result.context.template,
        "success": result.success,
        "student": result.student,
        "problems": len(result.with_context),
        "answers": result.answers,
        "gain": gain.difference,
        "interval": {"low": gain.interval.low, "high": gain.interval.high},
        "shift": {
            "right": shift.right,
            "wrong": shift.wrong,
            "right_after": shift.right_after,
            "wrong_after": shift.wrong_after,
            "difference": shift.difference,
            "interval": {"low": shift.interval.low, "high": shift.interval.high},
            "problems": shift.problems,
            "pairs": shift.pairs,
        },
        "recommended": result is conclusion.best and conclusion.kind == "learns",
    }


def as_lines(content: dict[str, Any], written: Path | None = None) -> list[str]:
    """Return the lines of the text output: a row for each context, then the verdict."""
    heads = ("context", "template", "problems", "student", "self-teacher", "gain (95 %)", "shift right / wrong")
    rows = [
        (
            each["name"].replace("_", " "),
            each["template"],
            f"{each['problems']}/{content['problems']}",
            render.percent(each["student"]),
            render.percent(each["success"]),
            _points(each),
            f"{render.number(each['shift']['right'], '+.2f')} / {render.number(each['shift']['wrong'], '+.2f')}",
        )
        for each in content["contexts"]
    ]
    student = content["student"]
    success = render.percent(student["success"], student["low"], student["high"])
    settings = [f"  --set {key}={render.yaml_value(value)}" for key, value in content["settings"].items()]
    write = [f"written to {written}: sdpo train -c {written}"] if written is not None else []
    return [
        *render.table(heads, rows),
        *(f"not tried: {name.replace('_', ' ')}: {why}" for name, why in content["left_out"].items()),
        "",
        f"student  {success}, {render.plural(content['problems'], 'problem')} x {content['rollouts']} rollouts",
        f"cost     {render.plural(content['answers'], 'rollout')}, {content['tokens']:,} tokens, "
        f"{render.duration(content['seconds'])}",
        f"verdict  {content['verdict']}: {content['sentence']}",
        "recommended:",
        *settings,
        *write,
    ]


def _points(context: Mapping[str, Any]) -> str:
    gain, interval = context["gain"], context["interval"]
    return f"{render.number(100 * gain, '+.1f')}{render.span(interval['low'], interval['high'], '+.1f')}"
