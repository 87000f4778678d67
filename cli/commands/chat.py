"""`sdpo chat`: a conversation in the terminal, with the adapter, without it, or both side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.runs.conversation import ChatModel, Conversation

MAX_TOKENS = 512
HINT = 'Ctrl-C stops an answer; """ begins and ends several lines; /new begins anew; /quit or Ctrl-D leaves'
FENCE = '"""'


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.Target,
    *,
    adapter: Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="An adapter for the model.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Each answer twice: base, then adapter.")] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Ask this one question, then leave.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer, in tokens.")
    ] = MAX_TOKENS,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", min=0, help="0: the likeliest token; default: eval.temperature."),
    ] = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Talk to a run, a model, or a model with an adapter.

    Example: sdpo chat runs/first --compare
    """
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import adapter_home, target_config

    if as_json and prompt is None:
        raise ConfigError("--json is for one question", where="--json", fix="add --prompt TEXT")
    if compare and adapter_home(target, adapter) is None:
        raise ConfigError("there is no adapter to compare", where=target, fix="name a run folder, or add --adapter DIR")
    flags = {"train.seed": seed, "eval.temperature": temperature}
    cfg = target_config(target, adapter, sets or [], flags)
    with render.status(f"opening {cfg.model.name}", plain):
        speaker = _opened(target, cfg, adapter, max_tokens)
    sides = _sides(speaker, compare)
    if prompt is None:
        _talk(sides, _typed)
    elif as_json:
        render.document({"target": target, "prompt": prompt, "answers": [_silent(side, prompt) for side in sides]})
    else:
        _answered(sides, prompt)


def _opened(target: str, cfg: Any, adapter: Path | None, max_tokens: int) -> ChatModel:
    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.runs.conversation import open_speaker

    sampling = SamplingParams(max_tokens, cfg.eval.temperature, cfg.eval.top_p, frozenset(), concurrency=1)
    return open_speaker(target, cfg, sampling, adapter)


def _sides(speaker: ChatModel, compare: bool) -> list[Conversation]:
    from sdpo_mlx.runs.conversation import Conversation

    voices = list(speaker.voices)
    return [Conversation(speaker, voice) for voice in (voices if compare else voices[-1:])]


def _talk(sides: Sequence[Conversation], typed: Callable[[], str]) -> None:
    """Questions and answers until the person leaves."""
    from sdpo_mlx.core.errors import DataError

    render.say(HINT)
    while True:
        try:
            question = _question(typed)
        except EOFError:
            return
        except KeyboardInterrupt:
            render.say(f"\n{HINT}")
            continue
        if question == "/quit":
            return
        if question == "/new":
            for side in sides:
                side.forget()
        elif question.startswith("/"):
            render.say(f"{question.split()[0]} is no command here: {HINT}")
        elif question:
            try:
                _answered(sides, question, leave=False)
            except DataError as error:
                render.say(error.line())


def _question(typed: Callable[[], str]) -> str:
    """What was typed: one line, or all lines between two of FENCE."""
    line = typed().strip()
    if not line.startswith(FENCE):
        return line
    lines = [line.removeprefix(FENCE)]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(typed())
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")


def _typed() -> str:
    """One line; a terminal gets a prompt, and keys that edit where the system has them."""
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it
    return input("> " if sys.stdin.isatty() else "")


def _answered(sides: Sequence[Conversation], question: str, leave: bool = True) -> None:
    """Every side's answer as it comes; Ctrl-C stops them all, and leaves where only one question was asked."""
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt() as interrupt:
        for side in sides:
            if len(sides) > 1:
                render.result([f"{side.voice}:"])
            render.stream(side.ask(question, interrupt.requested))
            _noted(side)
            if interrupt.requested():
                break
    if interrupt.requested() and (leave or interrupt.exit_code != 130):
        raise typer.Exit(interrupt.exit_code)


def _noted(side: Conversation) -> None:
    """What a person should know of an answer beside its words."""
    said = side.last
    if said.dropped:
        render.say(f"(the context is full: the oldest {said.dropped} exchanges were forgotten)")
    if said.finish == "length":
        render.say(f"(cut off after {said.tokens} tokens; --max-tokens allows more)")
    if said.finish == "interrupted":
        render.say("(stopped)")


def _silent(side: Conversation, question: str) -> dict[str, Any]:
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt() as interrupt:
        for _ in side.ask(question, interrupt.requested):
            pass
    if interrupt.requested():
        raise typer.Exit(interrupt.exit_code)
    said = side.last
    return {"voice": side.voice, "text": said.text, "finish": said.finish, "tokens": said.tokens}
