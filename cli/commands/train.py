"""`sdpo train`: train, and leave a run folder with an adapter."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.commands.opening import interruptible
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.backends.distributed.process_group import ProcessGroup
    from sdpo_mlx.config import Config
    from sdpo_mlx.core.progress import StartTask
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.training.final_scores import TrainingResult
    from sdpo_mlx.training.session import OnEvent
    from sdpo_mlx.types import RolloutGroup

EXIT_TOO_LITTLE = 1
OUT = "Run folder; default: runs/<model>-<task>-seed<n>."
SHOW_CURSOR = "\x1b[?25h"


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.AnyTarget = None,
    *,
    model: options.Model = None,
    run: options.Run = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="Start from this adapter; --run: from a run's.")
    ] = None,
    task: options.TaskName = None,
    data: options.Data = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    out: Annotated[Path | None, typer.Option("--out", "--adapter-path", metavar="DIR", help=OUT)] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps in total.")] = None,
    learning_rate: options.LearningRate = None,
    group_size: options.GroupSize = None,
    max_tokens: options.MaxTokens = None,
    num_layers: Annotated[int | None, typer.Option("--num-layers", hidden=True)] = None,
    grad_checkpoint: Annotated[bool | None, typer.Option("--grad-checkpoint", hidden=True)] = None,
    objective: options.Objective = None,
    teacher: options.Teacher = None,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sandbox: options.SandboxKind = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out with its own settings.")] = False,
    require_gain: Annotated[float | None, typer.Option("--require-gain", hidden=True)] = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on a task by self-distillation; run the same command again to resume.

    Example: sdpo train --model qwen --task code --steps 50
    """
    from sdpo_mlx.api import default_out, run_training
    from sdpo_mlx.runs.status import state_of

    flags = options.settings(task=task, data=data, steps=steps, learning_rate=learning_rate)
    flags |= options.settings(group_size=group_size, max_tokens=max_tokens, objective=objective, teacher=teacher)
    flags |= options.settings(num_layers=num_layers, grad_checkpoint=grad_checkpoint)
    flags |= options.settings(backend=backend, seed=seed, sandbox=sandbox)
    with process_group() as group:
        name = options.one_target(target, model, run)
        if resume:
            cfg, out = _resumed(name, adapter, config, out, (sets or [], flags))
        else:
            cfg = _started(name, adapter, config, out, (sets or [], flags))
        place = out or default_out(cfg)
        earlier = state_of(place) if (place / "events.jsonl").is_file() else None
        with interruptible(lambda: _saved(place), _leaving()) as interrupt:
            result, components = run_training(
                cfg, place, TerminalDisplay(plain), interrupt, group=group, command=["sdpo", *sys.argv[1:]]
            )
    shown = components, place, result, seconds_of(place)
    if earlier and earlier.state == "finished" and earlier.step == result.state.step:
        render.message(already_finished(place, result.state.step, cfg))
    render.output(as_document(*shown), summary(*shown), as_json)
    if require_gain is not None and not 100 * result.difference >= require_gain:
        points = render.number(100 * result.difference)
        render.message(f"sdpo: held-out score rose by {points} points, less than --require-gain {require_gain:g}.")
        raise typer.Exit(EXIT_TOO_LITTLE)


Overrides = tuple[Sequence[str], dict[str, Any]]  # of --set, and of options


def _started(
    name: str | None, adapter: Path | None, config: Path | None, out: Path | None, overrides: Overrides
) -> Config:
    """Return the settings of a training that starts, or that its own command resumes."""
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import is_run, run_config, starting_config

    cfg = starting_config(name, adapter, config, *overrides)
    start = cfg.model.adapter.start
    if start is not None and is_run(Path(start)) and (own := run_config(Path(start)).task.name) != cfg.task.name:
        kept = f"{Path(start).name} was trained on {own}: only its model, its adapter and their settings are kept"
        render.message(f"{kept}; the rest are the defaults for {cfg.task.name}")
    if start is not None and out is not None and out.resolve() == Path(start):
        fix = f"resume it with --out {out} --resume, or choose another --out"
        raise ConfigError("a run cannot start from its own adapter", where=str(out), fix=fix)
    return cfg


def _resumed(
    name: str | None, adapter: Path | None, config: Path | None, out: Path | None, overrides: Overrides
) -> tuple[Config, Path]:
    """Return the settings of a run with --resume, and its folder: --out, or the run that is named."""
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import named_config, run_config, run_or_none

    if adapter is not None:
        raise ConfigError("--resume goes on with the run's own adapter", where="--adapter", fix="remove one of them")
    run = run_or_none(name)
    if run is not None and out is None:
        name, out = None, Path(run)
    if out is None:
        raise ConfigError("--resume needs the run's folder", where="--out", fix="Add --out DIR")
    sets, flags = overrides
    if config is None:
        return run_config(out, sets, {**flags, "model.name": name}), out
    return named_config(name, config, sets, flags), out


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Yield rank 0's process group, a single process without a launcher; other ranks serve it and end here."""
    from sdpo_mlx.backends.distributed.launch import open_process_group
    from sdpo_mlx.core.errors import RankLostError
    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.rl.components import serve

    group = open_process_group()
    try:
        if group.rank:
            with Interrupt(leave=_leaving()) as interrupt:
                serve(group, interrupt.requested)
            raise typer.Exit
        yield group
    except RankLostError as error:
        # A collective that still waits for the lost rank would keep this process alive: leave without cleanup.
        if not error.ended:
            render.message(f"sdpo: {error.line()}")
        group.close()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0 if error.ended else error.exit_code)
    finally:
        group.close()


def _saved(out: Path) -> str:
    """Return the end of the message of an interrupted training."""
    from sdpo_mlx.runs import checkpoint
    from sdpo_mlx.runs.folder import RunFolder

    saved = checkpoint.steps(RunFolder(out).checkpoints)
    state = f"saved at step {max(saved)}" if saved else "nothing to save yet"
    return f", {state}. Run the same command to resume."


@dataclass(frozen=True)
class TerminalDisplay:
    """Shows a run on the terminal: live on a terminal, otherwise as plain lines."""

    plain: bool

    @contextmanager
    def opening(self, cfg: Config) -> Iterator[StartTask]:
        """Show that the components are being opened."""
        from sdpo_mlx.backends.fit import download_notice
        from sdpo_mlx.core.gpu import backend_notice
        from sdpo_mlx.models.aliases import repository

        if notice := backend_notice(cfg.model.backend):
            render.message(notice)
        if notice := download_notice(cfg):
            render.message(notice)
        name, stands_for = cfg.model.name, repository(cfg.model.name, cfg.model.backend)
        target = f" -> {stands_for}" if stands_for != name else ""
        with render.status(f"loading {name}{target}", self.plain) as start_task:
            yield start_task

    @contextmanager
    def training(
        self, components: Components, folder: RunFolder, interrupted: Callable[[], bool]
    ) -> Iterator[tuple[OnEvent, StartTask]]:
        """Show model, plan, and then the training."""
        from sdpo_cli.terminal.live_view import run_view
        from sdpo_cli.terminal.progress import Header, Progress

        from sdpo_mlx.evaluation.spec import training_spec
        from sdpo_mlx.runs.status import EventFollower

        render.message(components.model.line())
        if plan := components.plan_line():
            render.message(plan)
        count, used = len(components.task.problems("held_out")), len(training_spec(components, "final").problems)
        if used < count:
            samples = components.cfg.eval.samples
            render.message(f"evaluation: {used:,} of {count:,} held-out problems x {samples} rollouts (eval.problems)")
        info = components.policy.info
        header = Header.of(components.cfg, f"{info.backend} {info.device} {info.dtype}", folder.path)
        progress = Progress(header, stopping=interrupted)
        with run_view(progress, self.plain) as show:

            def on_event(event: Mapping[str, Any], groups: Sequence[RolloutGroup]) -> None:
                if event["type"] == "resumed":  # the view is that of the whole run
                    for earlier in EventFollower(folder.events).new():
                        progress.observe(earlier)
                show(event, groups)

            yield on_event, progress.tasks.start


def _leaving() -> Callable[[int], None]:
    """Return what a second signal does: restore the terminal as it is now, and exit at once."""
    if not sys.stderr.isatty():
        return os._exit
    from sdpo_cli.terminal.console import show_control_characters, shows_control_characters

    shown = shows_control_characters()

    def leave(code: int) -> None:
        show_control_characters(shown)
        sys.stderr.write(SHOW_CURSOR)
        sys.stderr.flush()
        os._exit(code)

    return leave


def seconds_of(run: Path) -> float:
    """Return the time of a whole run, without the pauses between its processes."""
    from sdpo_mlx.runs.events import read_events
    from sdpo_mlx.runs.pace import Pace

    return Pace.of(read_events(run / "events.jsonl")).spent


def already_finished(out: Path, step: int, cfg: Config) -> str:
    """Return that a run had ended before this command, and how to continue it."""
    run, steps = shlex.quote(str(out)), cfg.train.steps
    more = f"--steps {2 * steps}" if step >= steps else "--train.patience 0 --train.on_decline warn"
    return f"{out} had finished at step {step} of {steps}. To continue: sdpo train --out {run} --resume {more}"


def summary(components: Components, out: Path, result: TrainingResult, seconds: float) -> list[str]:
    """Return the lines for the terminal: scores before and after, gain, forgetting, next commands."""
    from sdpo_mlx.rl.metrics import TRUNCATED_MOST

    cfg, state = components.cfg, result.state
    unchanged = state.step > 0 and not state.best_step
    lines = [
        "",
        f"{cfg.model.name} on {cfg.task.name}: {render.plural(state.step, 'step')}, {state.generations:,} rollouts, "
        f"{render.duration(seconds)}",
        *_score_lines(result, unchanged),
    ]
    if (forgot := result.forgetting).before is not None:  # the untouched model was measured
        before, after = forgot.before.perplexity, forgot.after.perplexity
        lines += [
            f"forgetting  KL to base {forgot.divergence:.4f} nats/token (s.e. {forgot.error:.4f}) on general prompts",
            f"            perplexity on a general text {before:,.1f} -> {after:,.1f}",
        ]
    if result.truncated > 0:
        advice = f"; raise --max-tokens ({cfg.rollout.max_tokens})" if result.truncated > TRUNCATED_MOST else ""
        lines.append(f"truncated {render.percent(result.truncated)} of the rollouts of the last steps{advice}")
    best = f"step {state.best_step}"
    if unchanged:
        start, end = "the untouched model", "the adapter changes nothing"
        if cfg.model.adapter.start:
            start, end = "the adapter that it started from", "it is kept as it was"
        best += f", {start}: no step scored higher on held-out problems, so {end}"
    if state.step < cfg.train.steps and not state.declined:
        none = f"no better held-out score in {render.plural(state.stale, 'evaluation')} (train.patience)"
        lines.append(f"ended     after step {state.step} of {cfg.train.steps}: {none}")
    if result.warnings:
        rules = ", ".join(f"{event['rule']} (step {event['step']})" for event in result.warnings)
        lines.append(f"warnings  {rules}; in full in {out}/README.md")
    lines += [f"decline   {event['message']}" for event in result.warnings if event["type"] == "decline"]
    lines += [f"best      {best}", f"adapter   {out}/adapters.safetensors", "", "next:"]
    return [*lines, *(f"  {each}" for each in _next(components, out, result))]


def _score_lines(result: TrainingResult, unchanged: bool) -> list[str]:
    """Return the scores before and after by their name, the gain, and whether it can be believed."""
    from sdpo_mlx.training.model_card import label_of

    finals = [final.result if final else None for final in (result.before, result.after)]
    name = label_of(*finals)
    scores = [render.percent(each.score, each.low, each.high) if each else "-" for each in finals]
    lines = [f"held-out  {name} before {scores[0]}   after {scores[1]}"]
    if name == "mean reward":
        rates = [render.percent(each.success if each else None) for each in finals]
        lines.append(f"          success before {rates[0]}   after {rates[1]}")
    if result.comparison is not None and not math.isnan(result.difference) and not unchanged:
        paired = render.span(*result.interval, "+.1f")
        lines.append(f"gain      {100 * result.difference:+.1f} points{paired}; 95 % intervals, paired by problem")
        lines.append(f"          {result.comparison.sentence()}")
    return lines


def _next(components: Components, out: Path, result: TrainingResult) -> list[str]:
    from sdpo_mlx.runs.export.next_steps import next_commands

    learned = result.learned or result.comparison is None
    return next_commands(components, out, learned=learned, truncated=result.truncated)


def as_document(components: Components, out: Path, result: TrainingResult, seconds: float) -> dict[str, Any]:
    """Return the result as a JSON document; scores are shares of 1."""
    before, after = (asdict(final.result) if final else None for final in (result.before, result.after))
    return {
        "run": str(out),
        "model": components.model.record(),
        "task": components.cfg.task.name,
        "steps": result.state.step,
        "best_step": result.state.best_step,
        "generations": result.state.generations,
        "seconds": round(seconds, 3),
        "before": before,
        "after": after,
        "difference": {"mean": result.difference, "low": result.interval.low, "high": result.interval.high},
        "significant": bool(result.comparison and result.comparison.significant),
        "truncated": result.truncated,
        "forgetting": asdict(result.forgetting),
        "warnings": [{name: event[name] for name in ("step", "rule", "message")} for event in result.warnings],
        "adapter": str(out / "adapters.safetensors"),
        "next": _next(components, out, result),
    }
