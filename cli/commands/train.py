"""`sdpo train`: train, and leave a run folder with an adapter."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
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

EXIT_TOO_LITTLE = 1
OUT = "Run folder; default: runs/<model>-<task>-seed<n>."
SHOW_CURSOR = "\x1b[?25h"


def command(  # noqa: PLR0913 - typer reads the options off the signature
    *,
    model: options.Model = None,
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
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import run_config

    flags = options.settings(model=model, task=task, data=data, steps=steps, learning_rate=learning_rate)
    flags |= options.settings(group_size=group_size, max_tokens=max_tokens, objective=objective, teacher=teacher)
    flags |= options.settings(num_layers=num_layers, grad_checkpoint=grad_checkpoint)
    flags |= options.settings(backend=backend, seed=seed, sandbox=sandbox)
    with process_group() as group:
        if resume and out is None:
            raise ConfigError("--resume needs the run's folder", where="--out", fix="Add --out DIR")
        if resume and config is None:
            cfg = run_config(out, sets or [], flags)
        else:
            cfg = resolve(config, sets or [], flags).config
        place, begun = out or default_out(cfg), time.monotonic()
        with interruptible(lambda: _saved(place), _leave) as interrupt:
            result, components = run_training(
                cfg, place, TerminalDisplay(plain), interrupt, group=group, command=["sdpo", *sys.argv[1:]]
            )
    shown = components, place, result, time.monotonic() - begun
    render.output(as_document(*shown), summary(*shown), as_json)
    if require_gain is not None and not 100 * result.difference >= require_gain:
        points = render.number(100 * result.difference)
        render.message(f"sdpo: held-out score rose by {points} points, less than --require-gain {require_gain:g}.")
        raise typer.Exit(EXIT_TOO_LITTLE)


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
            with Interrupt(leave=_leave) as interrupt:
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
        from sdpo_mlx.models.aliases import repository

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

        render.message(components.model.line())
        if plan := components.plan_line():
            render.message(plan)
        info = components.policy.info
        header = Header.of(components.cfg, f"{info.backend} {info.device} {info.dtype}", folder.path)
        progress = Progress(header, stopping=interrupted)
        with run_view(progress, self.plain) as on_event:
            yield on_event, progress.tasks.start


def _leave(code: int) -> None:
    """On a second signal: restore the cursor and exit at once."""
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
        sys.stderr.flush()
    os._exit(code)


def summary(components: Components, out: Path, result: TrainingResult, seconds: float) -> list[str]:
    """Return the lines for the terminal: scores before and after, gain, forgetting, next commands."""
    from sdpo_mlx.runs.export.next_steps import next_commands

    cfg, state = components.cfg, result.state
    gain, (low, high) = result.difference, result.interval
    finals = [final and final.result for final in (result.before, result.after)]
    scores = [render.percent(each.score, each.low, each.high) if each else "-" for each in finals]
    lines = [
        "",
        f"{cfg.model.name} on {cfg.task.name}: {state.step} steps, {state.generations} rollouts, "
        f"{render.duration(seconds)}",
        f"held-out  before {scores[0]}   after {scores[1]}",
    ]
    if not math.isnan(gain):
        paired = render.span(low, high, "+.1f")
        lines.append(f"gain      {100 * gain:+.1f} points{paired}; 95 % intervals, paired by problem")
    if (forgot := result.forgetting).before is not None:  # the untouched model was measured
        before, after = forgot.before.perplexity, forgot.after.perplexity
        lines += [
            f"forgetting  KL to base {forgot.divergence:.4f} nats/token (s.e. {forgot.error:.4f}) on general prompts",
            f"            perplexity on a general text {before:,.1f} -> {after:,.1f}",
        ]
    best = f"step {state.best_step}"
    if state.step and not state.best_step:
        best += ", the untouched model: no step scored higher on held-out problems, so the adapter changes nothing"
    if result.warnings:
        rules = ", ".join(f"{event['rule']} (step {event['step']})" for event in result.warnings)
        lines.append(f"warnings  {rules}; in full in {out}/README.md")
    lines += [f"decline   {event['message']}" for event in result.warnings if event["type"] == "decline"]
    lines += [f"best      {best}", f"adapter   {out}/adapters.safetensors", "", "next:"]
    return [*lines, *(f"  {each}" for each in next_commands(components, out))]


def as_document(components: Components, out: Path, result: TrainingResult, seconds: float) -> dict[str, Any]:
    """Return the result as a JSON document; scores are shares of 1."""
    from sdpo_mlx.runs.export.next_steps import next_commands

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
        "forgetting": asdict(result.forgetting),
        "warnings": [{name: event[name] for name in ("step", "rule", "message")} for event in result.warnings],
        "adapter": str(out / "adapters.safetensors"),
        "next": next_commands(components, out),
    }
