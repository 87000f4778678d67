"""`sdpo coach TARGET`: train on your own feedback, one rollout at a time."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.commands.coach_session import QUIT, Tally, read_answer, session
from sdpo_cli.commands.opening import open_components
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.training.coaching import Coaching
    from sdpo_mlx.types import Problem


@dataclass(frozen=True)
class SessionOptions:
    """Where problems come from (`source`: `task`, `prompts` or `typed`), and what to show."""

    source: str
    prompts: tuple[str, ...] = ()
    problems: int | None = None
    again: bool = False
    replay: Path | None = None


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.Target,
    *,
    task: options.TaskName = None,
    data: options.Data = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Use this prompt instead of a task; repeatable."),
    ] = None,
    problems: Annotated[
        int | None, typer.Option("--problems", metavar="N", min=1, help="Stop after N problems.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option("--group-size", metavar="N", min=1, help="Rollouts per problem; default: 1.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Sample again with the same seed after each step.")] = False,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="FILE", help="Repeat the steps of a coaching.jsonl.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default: runs/<name>-coach.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", metavar="X", help="AdamW learning rate; default: 0.4 of training's."),
    ] = None,
    max_tokens: options.MaxTokens = None,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Train interactively from your own feedback: read a rollout, type what is wrong, and one step is made.

    Feedback is read from the terminal, or line by line from a pipe. A line that is a JSON string ("...") may contain
    several lines. All feedback is saved in coaching.jsonl; --replay repeats the steps from that file.

    Example: sdpo coach runs/tiny-tiny-seed0 --problems 5
    """
    flags = options.settings(task=task, data=data, group_size=group_size, max_tokens=max_tokens, backend=backend)
    flags |= options.settings(learning_rate=learning_rate, seed=seed, sandbox=sandbox)
    cfg, place = settings(target, sets or [], flags, replay), out or default_out(target)
    # A replay keeps the source of its problems.
    source = source_of(target if replay is None else str(replay.parent), bool(task or data), prompt)
    chosen = SessionOptions(source, tuple(prompt or ()), problems, again, replay)
    content, interrupted = coached(target, cfg, place, chosen, plain=plain)
    if interrupted:
        render.message("sdpo: interrupted, every lesson is saved. Run the same command again to resume.")
    render.output(content, as_lines(content), as_json)
    if interrupted:
        raise typer.Exit(130)


def coached(
    target: str, cfg: Config, place: Path, chosen: SessionOptions, *, plain: bool
) -> tuple[dict[str, Any], bool]:
    """Run the session; return its document and whether it was interrupted."""
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import is_run, with_kept_template
    from sdpo_mlx.training.coaching import Coaching
    from sdpo_mlx.training.lessons import read_lessons

    tally, interrupted = Tally(), False
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    with RunFolder.open(place) as folder:
        components = open_components(with_kept_template(cfg, place), plain, target)
        itself = place.resolve() == Path(target).resolve()
        origin = Path(target).resolve().name if is_run(Path(target)) else ""
        coaching = Coaching(components, folder, itself=itself, origin=origin)
        folder.write_manifest({**components.manifest(["sdpo", *sys.argv[1:]]), "asks": chosen.source})
        try:
            if chosen.replay is not None:
                lessons = read_lessons(chosen.replay, components.chat, components.policy.info.vocab_size)
                for lesson, learned in coaching.replay(lessons):
                    tally.add(lesson, learned)
            else:
                plays = chosen.source == "task" and components.task.replies
                problems = problems_of(components, chosen, coaching.step)
                session(coaching, problems, tally, plays=plays, again=chosen.again)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            coaching.close()
    return as_document(target, place, coaching, tally), interrupted


def settings(target: str, sets: list[str], flags: dict[str, Any], replay: Path | None = None) -> Config:
    """Return the settings of the coached folder, or of the replayed one; otherwise the target's for coaching."""
    from sdpo_mlx.runs.targets import is_run, run_config
    from sdpo_mlx.training.coaching import coaching_config, is_coached

    if replay is not None and is_coached(replay.parent):
        model = run_config(Path(target)).model.name if is_run(Path(target)) else target
        return run_config(replay.parent, sets, {**flags, "model.name": model})
    return coaching_config(target, sets, flags)


def default_out(target: str) -> Path:
    """Return a coached folder itself, otherwise `runs/<name>-coach`."""
    from sdpo_mlx.training.coaching import is_coached

    path = Path(target)
    if is_coached(path):
        return path
    name = path.resolve().name if path.exists() else target
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')[:100] or 'model'}-coach"


def source_of(target: str, task: bool, prompts: list[str] | None) -> str:
    """Return where problems come from: `prompts`, a `task` (a run has one), or `typed` on the terminal."""
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import is_run
    from sdpo_mlx.training.coaching import is_coached

    if prompts:
        return "prompts"
    if not task and is_coached(Path(target)):
        return "task" if RunFolder(target).read_manifest().get("asks") == "task" else "typed"
    return "task" if task or is_run(Path(target)) else "typed"


def problems_of(components: Components, chosen: SessionOptions, done: int) -> Iterator[Problem]:
    """Return the problems in order: prompts, or those of a task, which repeat without end, each once per epoch."""
    from sdpo_mlx.core.storage import digest
    from sdpo_mlx.rl.rollouts import Sampler
    from sdpo_mlx.types import Problem

    if chosen.source == "task":
        sampler = Sampler(components.task.problems("train"), 1, components.cfg.train.seed)
        return islice((sampler.batch(number)[0] for number in count(done)), chosen.problems)
    typed = iter(lambda: read_answer("prompt: ") or QUIT, QUIT)  # until an empty line
    found = (
        Problem(f"prompt-{digest(text.encode(errors='replace'))[:12]}", ({"role": "user", "content": text},))
        for text in chosen.prompts or typed
    )
    return islice(found, chosen.problems)


def as_document(target: str, place: Path, coaching: Coaching, tally: Tally) -> dict[str, Any]:
    """The result of the session for a program."""
    from sdpo_mlx.training.coaching import is_coached

    run, start = shlex.quote(str(place)), shlex.quote(target)
    # A replay repeats the same steps only from the same starting point.
    again = [] if is_coached(Path(target)) else [f"sdpo coach {start} --replay {run}/coaching.jsonl --out DIR"]
    return {
        "target": target,
        "run": str(place),
        "model": coaching.components.model.record(),
        "lessons": tally.lessons,
        "remarks": tally.remarks,
        "good": tally.good,
        "steps": tally.steps,
        "total": coaching.step,
        "adapter": str(place / "adapters.safetensors"),
        "data": str(place / "coaching.jsonl"),
        "next": [f"sdpo coach {run}", f"sdpo eval {run}", *again],
    }


def as_lines(content: dict[str, Any]) -> list[str]:
    """Return the lines of the text output."""
    counts = ", ".join(f"{name} {content[name]}" for name in ("lessons", "remarks", "good", "steps"))
    return [
        "",
        f"this session: {counts}; total lessons {content['total']}",
        f"lessons   {content['data']}",
        f"adapter   {content['adapter']}",
        "",
        "next:",
        *(f"  {each}" for each in content["next"]),
    ]
