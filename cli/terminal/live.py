"""Who watches a run: plain lines anywhere, the live view on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sdpo_cli.terminal.progress import Progress
from sdpo_cli.terminal.render import duration, is_live, now_and_then, number, percent, rate, say, span

from sdpo_mlx.training.session import OnEvent
from sdpo_mlx.types import RolloutGroup


@contextmanager
def watching(progress: Progress, plain: bool) -> Iterator[OnEvent]:
    """The observer of a run, which shows each event as it comes."""
    if is_live(plain):
        from sdpo_cli.terminal.live_view import live_view

        with live_view(progress) as observe:
            yield observe
        return
    say(progress.header.line())
    progress.work.heard = now_and_then()

    def observe_plainly(event: Mapping[str, Any], groups: Sequence[RolloutGroup]) -> None:
        progress.observe(event, groups)
        for line in lines_of(event, progress):
            say(line)

    yield observe_plainly


def lines_of(event: Mapping[str, Any], progress: Progress) -> list[str]:
    """An event as plain text; most need one line, bookkeeping none."""
    kind = event["type"]
    if kind == "step":
        return [step_line(progress)]
    if kind == "eval":
        return [eval_line(event, progress)]
    if kind == "warning":
        return [f"warning: {event.get('message', '')}"]
    return [f"resumed after step {event['step']}"] if kind == "resumed" else []


def step_line(progress: Progress) -> str:
    """What one step did."""
    latest, left = progress.latest, progress.seconds_left()
    parts = [
        f"step {progress.step}/{progress.header.steps}",
        f"success {percent(latest.get('success/rate'))}",
        f"loss {number(latest.get('loss'))}",
        f"divergence {number(latest.get('divergence/mean'))}",
        f"context {context_words(progress)}",
        f"{rate(progress.speed('generated', 'generate'))} tok/s",
        f"left {duration(left)}" if left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def context_words(progress: Progress) -> str:
    """The share of rollouts with a context, and why the others had none."""
    skips = ", ".join(f"{reason} {count}" for reason, count in progress.skips().items())
    return percent(progress.with_context()) + (f" ({skips})" if skips else "")


def eval_line(event: Mapping[str, Any], progress: Progress) -> str:
    """A held-out score with its interval."""
    score = f"{percent(event.get('score'))}{span(event.get('low'), event.get('high'))}"
    if event.get("final"):
        which = "before training" if event.get("adapter") == "none" else f"best adapter (step {event['adapter_step']})"
        return f"held-out, {which}: {score}"
    return f"held-out at step {event['step']}: {score}{', best so far' if progress.best is event else ''}"
