"""`sdpo coach TARGET`: the model answers, you say what was wrong, the step is made."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.commands.coach_session import QUIT, Tally, heard, session
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.rl.components import Components
    from sdpo_mlx.training.coaching import Coaching
    from sdpo_mlx.types import Problem


@dataclass(frozen=True)
class Wish:
    """What to ask and what to show; `asks` is `task`, `prompts` or `typed`."""

    asks: str
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
        typer.Option("--prompt", metavar="TEXT", help="Ask this instead of a task's problems; repeatable."),
    ] = None,
    problems: Annotated[
        int | None, typer.Option("--problems", metavar="N", min=1, help="Stop after N problems.")
    ] = None,
    answers: Annotated[
        int | None, typer.Option("--answers", metavar="N", min=1, help="Answers for each problem; default: 1.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Show after each step what the same seed gives now.")] = False,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="FILE", help="Learn again from a coaching.jsonl.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default: runs/<name>-coach.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", metavar="X", help="AdamW's learning rate; default: 0.4 of training's."),
    ] = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Teach by hand: read an answer, type one line of what was wrong, and the step is made.

    Remarks come from the terminal, or line by line from a pipe. A line that is a JSON string ("...") may hold
    several lines. Lessons are kept in coaching.jsonl; --replay makes the same steps again from that file.

    Example: sdpo coach runs/tiny-tiny-seed0 --problems 5
    """
    flags = {
        "task.name": task,
        "task.data": data,
        "rollout.group_size": answers,
        "rollout.max_tokens": max_tokens,
        "train.learning_rate": learning_rate,
        "train.seed": seed,
        "sandbox.kind": sandbox,
    }
    cfg, place = settings(target, sets or [], flags, replay), out or default_out(target)
    # What is replayed goes on asking as it did.
    source = target if replay is None else str(replay.parent)
    wish = Wish(asked_by(source, bool(task or data), prompt), tuple(prompt or ()), problems, again, replay)
    content, interrupted = coached(target, cfg, place, wish, plain=plain)
    show(content, as_json=as_json, interrupted=interrupted)
    if interrupted:
        raise typer.Exit(130)


def coached(target: str, cfg: Config, place: Path, wish: Wish, *, plain: bool) -> tuple[dict[str, Any], bool]:
    """Open all parts and hold the session: what came of it, and whether it was interrupted."""
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import is_run, open_target
    from sdpo_mlx.training.coaching import Coaching

    tally, interrupted = Tally(), False
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    with RunFolder.open(place) as folder:
        with render.status(f"opening {cfg.model.name}", plain) as doing:
            setup = open_target(target, cfg, doing=doing)
        render.say(setup.model.line())
        render.warn(setup.warnings())
        itself = place.resolve() == Path(target).resolve()
        origin = Path(target).resolve().name if is_run(Path(target)) else ""
        coaching = Coaching(setup, folder, itself=itself, origin=origin)
        folder.write_manifest({**setup.manifest(["sdpo", *sys.argv[1:]]), "asks": wish.asks})
        try:
            if wish.replay is not None:
                _replay(coaching, wish.replay, tally)
            else:
                plays = wish.asks == "task" and hasattr(setup.task, "reply")
                session(coaching, asked(setup, wish, coaching.step), tally, plays=plays, again=wish.again)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            coaching.close()
    return as_document(target, place, coaching, tally), interrupted


def settings(target: str, sets: list[str], flags: dict[str, Any], replay: Path | None = None) -> Config:
    """A coached folder's own settings, or of that whose lessons are replayed; else the target's for coaching."""
    from sdpo_mlx.runs.targets import is_run, run_config
    from sdpo_mlx.training.coaching import coaching_config, is_coached

    if replay is not None and is_coached(replay.parent):
        model = run_config(Path(target)).model.name if is_run(Path(target)) else target
        return run_config(replay.parent, sets, {**flags, "model.name": model})
    return coaching_config(target, sets, flags)


def default_out(target: str) -> Path:
    """A coached folder itself, else `runs/<name>-coach`."""
    from sdpo_mlx.training.coaching import is_coached

    path = Path(target)
    if is_coached(path):
        return path
    name = path.resolve().name if path.exists() else target
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')[:100] or 'model'}-coach"


def asked_by(target: str, task: bool, prompts: list[str] | None) -> str:
    """Where questions come from: `prompts`, a `task` (a run has one), or `typed` by the person."""
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import is_run
    from sdpo_mlx.training.coaching import is_coached

    if prompts:
        return "prompts"
    if not task and is_coached(Path(target)):
        return "task" if RunFolder(target).read_manifest().get("asks") == "task" else "typed"
    return "task" if task or is_run(Path(target)) else "typed"


def asked(setup: Components, wish: Wish, done: int) -> Iterator[Problem]:
    """Questions in order; those of a task without end, and none twice in an epoch."""
    return islice(_of_task(setup, done) if wish.asks == "task" else _of_texts(wish.prompts), wish.problems)


def _of_task(setup: Components, done: int) -> Iterator[Problem]:
    from sdpo_mlx.rl.rollouts import Sampler

    sampler = Sampler(setup.task.problems("train"), 1, setup.cfg.train.seed)
    return (sampler.batch(number)[0] for number in count(done))


def _of_texts(prompts: Sequence[str]) -> Iterator[Problem]:
    """The given prompts, or what the person types until an empty line."""
    from sdpo_mlx.core.storage import digest
    from sdpo_mlx.types import Problem

    for text in prompts or iter(lambda: heard("ask the model: ") or QUIT, QUIT):
        yield Problem(f"prompt-{digest(text.encode(errors='replace'))[:12]}", ({"role": "user", "content": text},))


def _replay(coaching: Coaching, file: Path, tally: Tally) -> None:
    from sdpo_mlx.training.lessons import read_lessons

    lessons = read_lessons(file, coaching.setup.chat, coaching.setup.policy.info.vocab_size)
    for lesson, learned in coaching.replay(lessons):
        tally.add(lesson, learned)


def as_document(target: str, place: Path, coaching: Coaching, tally: Tally) -> dict[str, Any]:
    """What came of it, for a program."""
    from sdpo_mlx.training.coaching import is_coached

    run, start = shlex.quote(str(place)), shlex.quote(target)
    # Only from where the session began are they the same steps.
    again = [] if is_coached(Path(target)) else [f"sdpo coach {start} --replay {run}/coaching.jsonl --out DIR"]
    return {
        "target": target,
        "run": str(place),
        "model": coaching.setup.model.record(),
        "lessons": tally.lessons,
        "remarks": tally.remarks,
        "good": tally.good,
        "steps": tally.steps,
        "total": coaching.step,
        "adapter": str(place / "adapters.safetensors"),
        "data": str(place / "coaching.jsonl"),
        "next": [f"sdpo coach {run}", f"sdpo eval {run}", *again],
    }


def show(content: dict[str, Any], *, as_json: bool, interrupted: bool) -> None:
    if interrupted:
        render.say("sdpo: interrupted, every lesson is saved; run the same command to go on.")
    if as_json:
        render.document(content)
        return
    counts = ", ".join(f"{name} {content[name]}" for name in ("lessons", "remarks", "good", "steps"))
    render.result(
        [
            "",
            f"this time {counts}; lessons in all {content['total']}",
            f"lessons   {content['data']}",
            f"adapter   {content['adapter']}",
            "",
            "next:",
            *(f"  {each}" for each in content["next"]),
        ]
    )
