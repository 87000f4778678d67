"""`sdpo train`: the main job, from settings to a run folder with an adapter in it."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.backends.distributed.process_group import ProcessGroup
    from sdpo_mlx.config import Config
    from sdpo_mlx.core.errors import RankLostError
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.training.final_scores import FinalScore, TrainingResult

EXIT_TOO_LITTLE = 1
SHOW_CURSOR = "\x1b[?25h"


def command(  # noqa: PLR0913 - typer reads the options off the signature
    *,
    model: options.Model = None,
    task: options.TaskName = None,
    data: options.Data = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--adapter-path", metavar="DIR", help="Run folder; default: runs/<model>-<task>-seed<n>."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--iters", metavar="N", help="Steps of the whole run.")
    ] = None,
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, by its own settings.")] = False,
    require_gain: Annotated[float | None, typer.Option("--require-gain", hidden=True)] = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on a task by self-distillation; the same command goes on with a run.

    Example: sdpo train --model qwen --task code --steps 50
    """
    flags = {
        "model.name": model,
        "task.name": task,
        "task.data": data,
        "train.steps": steps,
        "train.learning_rate": learning_rate,
        "rollout.group_size": group_size,
        "rollout.max_tokens": max_tokens,
        "model.adapter.layers": num_layers,
        "train.grad_checkpoint": grad_checkpoint,
        "objective.kind": objective,
        "teacher.kind": teacher,
        "model.backend": backend,
        "train.seed": seed,
        "sandbox.kind": sandbox,
    }

    def lead(world: ProcessGroup) -> int:
        cfg = settings(config, sets or [], flags, out if resume else None, resume=resume)
        return train(cfg, out or default_out(cfg), Shown(plain, as_json, require_gain), world)

    if code := on_ranks(lead):
        raise typer.Exit(code)


def on_ranks(lead: Callable[[ProcessGroup], int]) -> int:
    """The exit code of `lead` on rank 0, which is the only one without a launcher; the others help it."""
    from sdpo_mlx.backends.distributed.launch import open_process_group
    from sdpo_mlx.core.errors import RankLostError

    world = open_process_group()
    try:
        return help_out(world) if world.rank else lead(world)
    except RankLostError as error:
        # A collective that still waits for the lost rank would hold this process as well.
        return _left(world, error)
    finally:
        world.close()


@dataclass(frozen=True)
class Shown:
    """What is shown of a run, and what it must have gained."""

    plain: bool = False
    as_json: bool = False
    require_gain: float | None = None


def help_out(world: ProcessGroup) -> int:
    """A rank other than 0: serve until the run ends; rank 0 speaks for all."""
    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.rl.components import serve

    with Interrupt(leave=_leave) as interrupt:
        serve(world, interrupt.requested)
    return 0


def _left(world: ProcessGroup, error: RankLostError) -> NoReturn:
    """Leave for good: quietly where rank 0 ended, for it has said why."""
    if not error.ended:
        render.message(f"sdpo: {error.line()}")
    world.close()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0 if error.ended else error.exit_code)


def settings(
    config: Path | None, sets: list[str], flags: Mapping[str, Any], run: Path | None, *, resume: bool
) -> Config:
    """The settings: of the run itself when it is resumed, else of file, presets and flags."""
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import run_config

    if not resume:
        return resolve(config, sets, flags).config
    if run is None:
        raise ConfigError("--resume needs to know which run", where="--out", fix="add --out DIR")
    return run_config(run, sets, flags) if config is None else resolve(config, sets, flags).config


def default_out(cfg: Config) -> Path:
    """`runs/<model>-<task>-seed<n>`, in characters that every file system takes."""
    model = Path(cfg.model.name).name if cfg.model.name.startswith((".", "/", "~")) else cfg.model.name
    name = f"{model}-{cfg.task.name}-seed{cfg.train.seed}"
    return Path("runs") / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120] or "run")


def train(cfg: Config, out: Path, shown: Shown, world: ProcessGroup) -> int:
    """Open all parts, train, show; the exit code."""
    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.tracking.registry import check

    check(cfg.log.sinks)
    existed, begun = out.exists(), time.monotonic()
    with RunFolder.open(out) as folder, Interrupt(leave=_leave) as interrupt:
        try:
            setup = _opened(cfg, shown.plain, world)
            outcome = _trained(setup, folder, interrupt.requested, shown.plain)
        except KeyboardInterrupt:
            return _interrupted(folder, interrupt.exit_code)
        finally:
            _tidy(folder, existed)
    seconds = time.monotonic() - begun
    if shown.as_json:
        render.document(as_document(setup, out, outcome, seconds))
    else:
        render.result(summary(setup, out, outcome, seconds))
    if shown.require_gain is not None and not 100 * outcome.difference >= shown.require_gain:
        points = render.number(100 * outcome.difference)
        render.message(
            f"sdpo: held-out rose by {points} points, {shown.require_gain:g} were asked for (--require-gain)."
        )
        return EXIT_TOO_LITTLE
    return 0


def _opened(cfg: Config, plain: bool, world: ProcessGroup) -> Components:
    from sdpo_mlx.models.resolve import ALIASES
    from sdpo_mlx.rl.components import build_components

    name = cfg.model.name
    became = f" -> {ALIASES[name]}" if name in ALIASES else ""
    with render.status(f"opening {name}{became}", plain) as doing:
        setup = build_components(cfg, world, start_task=doing)
    render.message(setup.model.line())
    if planned := setup.plan_line():
        render.message(planned)
    return setup


def _trained(setup: Components, folder: Any, interrupted: Any, plain: bool) -> TrainingResult:
    from sdpo_cli.terminal.live_view import run_view
    from sdpo_cli.terminal.progress import Header, Progress

    from sdpo_mlx.trainer import fit

    info = setup.policy.info
    header = Header.of(setup.cfg, f"{info.backend} {info.device} {info.dtype}", folder.path)
    progress = Progress(header, stopping=interrupted)
    with run_view(progress, plain) as observe:
        command = ["sdpo", *sys.argv[1:]]
        return fit(setup, folder, observe, interrupted, command=command, start_task=progress.tasks.start)


def _interrupted(folder: Any, code: int) -> int:
    from sdpo_mlx.core.errors import EXIT_INTERRUPTED
    from sdpo_mlx.runs import checkpoint

    saved = checkpoint.steps(folder.checkpoints)
    where = f"saved at step {max(saved)}" if saved else "nothing to save yet"
    render.message(f"sdpo: interrupted, {where}; run the same command to go on.")
    return code or EXIT_INTERRUPTED


def _leave(code: int) -> None:
    """A second signal: give the terminal its cursor back and go at once."""
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
        sys.stderr.flush()
    os._exit(code)


def _tidy(folder: Any, existed: bool) -> None:
    """Leave no empty run behind where nothing came of it."""
    if existed or folder.events.exists():
        return
    folder.close()
    (folder.path / ".lock").unlink(missing_ok=True)
    for each in (folder.rollouts, folder.checkpoints, folder.path, Path("runs")):
        if each.is_dir() and not any(each.iterdir()):
            each.rmdir()


def summary(setup: Components, out: Path, outcome: TrainingResult, seconds: float) -> list[str]:
    """What came of it, and what to do next."""
    from sdpo_mlx.runs.export.next_steps import next_commands

    cfg, state = setup.cfg, outcome.state
    gain, (low, high) = outcome.difference, outcome.interval
    lines = [
        "",
        f"{cfg.model.name} on {cfg.task.name}: {state.step} steps, {state.generations} answers sampled, "
        f"{render.duration(seconds)}",
        f"held-out  before {_score(outcome.before)}   after {_score(outcome.after)}",
    ]
    if not math.isnan(gain):
        paired = f" ({100 * low:+.1f} to {100 * high:+.1f})" if not math.isnan(low) else ""
        lines.append(f"gain      {100 * gain:+.1f} points{paired}; 95 % intervals, paired by problem")
    lines += _forgotten(outcome)
    lines += [f"best      {_best(state)}", f"adapter   {out}/adapters.safetensors", "", "next:"]
    return [*lines, *(f"  {each}" for each in next_commands(setup, out))]


def _best(state: Any) -> str:
    if state.step and not state.best_step:
        return "step 0, the model as it came: no step did better on held-out problems, so the adapter changes nothing"
    return f"step {state.best_step}"


def _forgotten(outcome: TrainingResult) -> list[str]:
    """What ordinary language lost by the training, where the base was asked before."""
    found = outcome.forgetting
    if found.before is None:
        return []
    before, after = found.before.perplexity, found.after.perplexity
    return [
        f"forgot    {found.divergence:.4f} nats a token (+- {found.error:.4f}) from the base on ordinary prompts; "
        "0: nothing",
        f"          perplexity of an ordinary text {before:,.1f} -> {after:,.1f}; higher: it knows the language less",
    ]


def _score(final: FinalScore | None) -> str:
    if final is None:
        return "-"
    return f"{render.percent(final.result.score)}{render.span(final.result.low, final.result.high)}"


def as_document(setup: Components, out: Path, outcome: TrainingResult, seconds: float) -> dict[str, Any]:
    """The same for a program; scores are shares of 1."""
    from sdpo_mlx.runs.export.next_steps import next_commands

    before, after = (asdict(final.result) if final else None for final in (outcome.before, outcome.after))
    return {
        "run": str(out),
        "model": setup.model.record(),
        "task": setup.cfg.task.name,
        "steps": outcome.state.step,
        "best_step": outcome.state.best_step,
        "generations": outcome.state.generations,
        "seconds": round(seconds, 3),
        "before": before,
        "after": after,
        "difference": {"mean": outcome.difference, "low": outcome.interval.low, "high": outcome.interval.high},
        "forgetting": asdict(outcome.forgetting),
        "adapter": str(out / "adapters.safetensors"),
        "next": next_commands(setup, out),
    }
