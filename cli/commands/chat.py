"""`sdpo chat`: chat in the terminal with the adapter, without it, or with both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.runs.conversation import Conversation

MAX_TOKENS = 512
HINT = 'Ctrl-C stops the reply, """ starts and ends several lines, /new clears the chat, /quit or Ctrl-D quits'
FENCE = '"""'


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.Target,
    *,
    adapter: options.Adapter = None,
    compare: Annotated[bool, typer.Option("--compare", help="Reply twice: base, then adapter.")] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Reply to one prompt.")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Maximum tokens of a reply.")
    ] = MAX_TOKENS,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", min=0, help="0: greedy; default: eval.temperature."),
    ] = None,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Chat with a run, a model, or a model with an adapter.

    Example: sdpo chat runs/first --compare
    """
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import adapter_home, target_config

    if as_json and prompt is None:
        raise ConfigError("--json needs a prompt", where="--json", fix="add --prompt TEXT")
    if compare and adapter_home(target, adapter) is None:
        raise ConfigError("there is no adapter to compare", where=target, fix="name a run folder, or add --adapter DIR")
    flags = options.settings(backend=backend, seed=seed) | {"eval.temperature": temperature}
    cfg = target_config(target, adapter, sets or [], flags)
    with render.status(f"loading {cfg.model.name}", plain):
        from sdpo_mlx.backends.base import SamplingParams
        from sdpo_mlx.models import adapter_folder
        from sdpo_mlx.runs.conversation import Conversation, open_chat_model

        sampling = SamplingParams(max_tokens, cfg.eval.temperature, cfg.eval.top_p, frozenset(), concurrency=1)
        model = open_chat_model(target, cfg, sampling, adapter)
    render.warn((*adapter_folder.warnings(model.adapters.get("adapter", {})), *model.chat.source.warnings))
    sides = [Conversation(model, name) for name in list(model.adapters)[0 if compare else -1 :]]
    if prompt is None:
        _chat(sides, _read_line)
    elif as_json:
        render.document({"target": target, "prompt": prompt, "answers": [_reply(side, prompt) for side in sides]})
    else:
        _stream(sides, prompt)


def _chat(sides: Sequence[Conversation], read_line: Callable[[], str]) -> None:
    """Reply to messages until the user quits."""
    from sdpo_mlx.core.errors import DataError

    render.message(HINT)
    while True:
        try:
            question = _read_message(read_line)
        except EOFError:
            return
        except KeyboardInterrupt:
            render.message(f"\n{HINT}")
            continue
        if question == "/quit":
            return
        if question == "/new":
            for side in sides:
                side.clear()
        elif question.startswith("/"):
            render.message(f"unknown command {question.split()[0]}: {HINT}")
        elif question:
            try:
                _stream(sides, question, once=False)
            except DataError as error:
                render.message(error.line())


def _read_message(read_line: Callable[[], str]) -> str:
    """Read one line, or all lines between two of FENCE."""
    line = read_line().strip()
    if not line.startswith(FENCE):
        return line
    lines = [line.removeprefix(FENCE)]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(read_line())
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")


def _read_line() -> str:
    """Read one line; a terminal gets a prompt, and line editing if the system has it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it
    return input("> " if sys.stdin.isatty() else "")


def _stream(sides: Sequence[Conversation], question: str, once: bool = True) -> None:
    """Print the reply of every side as it arrives; Ctrl-C stops all, and ends the command if `once`."""
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt() as interrupt:
        for side in sides:
            if len(sides) > 1:
                render.result([f"{side.adapter}:"])
            render.stream(side.ask(question, interrupt.requested))
            reply = side.last
            if reply.dropped:
                render.message(f"(context full: dropped the oldest {render.plural(reply.dropped, 'exchange')})")
            if reply.finish == "length":
                render.message(f"(truncated at {reply.tokens} tokens; raise --max-tokens for more)")
            if reply.finish == "interrupted":
                render.message("(stopped)")
            if interrupt.requested():
                break
    if interrupt.requested() and (once or interrupt.exit_code != 130):
        raise typer.Exit(interrupt.exit_code)


def _reply(side: Conversation, question: str) -> dict[str, Any]:
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt() as interrupt:
        for _ in side.ask(question, interrupt.requested):
            pass
    if interrupt.requested():
        raise typer.Exit(interrupt.exit_code)
    reply = side.last
    return {"voice": side.adapter, "text": reply.text, "finish": reply.finish, "tokens": reply.tokens}
