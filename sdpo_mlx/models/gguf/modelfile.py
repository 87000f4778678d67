"""Ollama's Modelfile for a GGUF of ours: its prompts must be the ones the model was trained on.

Ollama does not read the chat template inside a GGUF as it stands: it knows some by heart and sends the bare question
to the rest. So the template is told in Ollama's own language, read off what the chat itself renders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.types import Message

_SYSTEM, _FIRST, _ANSWER, _SECOND = "sdpoSystem", "sdpoFirst", "sdpoAnswer", "sdpoSecond"  # no template writes these


def modelfile(chat: Chat, folder: Path, gguf: str) -> str:
    """The Modelfile for the file `gguf` beside it, made of the model in `folder`.

    Without a TEMPLATE where the model's has no such form; Ollama then goes by what it knows.
    """
    template = go_template(chat, *_bos(folder))
    stops = [token for i in sorted(chat.eos_ids) if '"' not in (token := chat.reveal([i]))]
    lines = [f"FROM ./{gguf}"]
    lines += [f'TEMPLATE """{template}"""'] if template is not None else []
    lines += [f'PARAMETER stop "{token}"' for token in stops]
    return "\n".join(lines) + "\n"


def go_template(chat: Chat, bos: str = "", added: bool = False) -> str | None:
    """The chat as a Go template over `.Messages`, None where it has no such form.

    `bos` is the token that may open a prompt; `added` says that who reads the GGUF puts it there unasked.
    """
    try:
        turns = _turns(chat)
        start = _cut(turns.opens, end=turns.asks)
        begun = bos if bos and start.startswith(bos) and not turns.asks.startswith(bos) else ""
        default = _cut(start, begun)
        before, after = _system(chat, begun, turns)
    except (ConfigError, ValueError):
        return None
    roles = {
        "system": (before, after),
        "user": (turns.asks, turns.asked),
        "assistant": (turns.earlier, turns.said),
    }
    inner = [turns.answers, default, begun, *(piece for pair in roles.values() for piece in pair)]
    if any("{{" in piece or '"""' in piece for piece in inner):
        return None
    cases = [f'{{{{ if eq .Role "{r}" }}}}{a}{{{{ .Content }}}}{b}{{{{ end }}}}' for r, (a, b) in roles.items()]
    unsaid = f"{{{{ if not .System }}}}{default}{{{{ end }}}}" if default else ""
    opened = "" if added else begun
    return f"{opened}{unsaid}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{turns.answers}"


@dataclass(frozen=True)
class _Turns:
    """What stands before and after each text: a prompt opens, asks and is answered; earlier answers may differ."""

    opens: str
    asks: str
    asked: str
    answers: str
    earlier: str
    said: str


def _turns(chat: Chat) -> _Turns:
    first: list[Message] = [{"role": "user", "content": _FIRST}]
    answered: list[Message] = [*first, {"role": "assistant", "content": _ANSWER}]
    opens, ending = _parts(chat, first, (_FIRST,))
    long: list[Message] = [*answered, {"role": "user", "content": _SECOND}]
    _, spoken, between, _ = _parts(chat, long, (_FIRST, _ANSWER, _SECOND))
    # Some templates end a conversation, but no turn inside it, with a token of its own.
    asked = _shared(_parts(chat, first, (_FIRST,), False)[1], ending)
    said = _shared(_parts(chat, answered, (_ANSWER,), False)[1], between)
    return _Turns(opens, _cut(between, said), asked, _cut(ending, asked), _cut(spoken, asked), said)


def _system(chat: Chat, bos: str, turns: _Turns) -> tuple[str, str]:
    """What stands around a system message; where it goes into the question, it is a turn of its own here."""
    messages: list[Message] = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _FIRST}]
    before, after, _ = _parts(chat, messages, (_SYSTEM, _FIRST))
    if turns.asks and after.endswith(turns.asks):
        return _cut(before, bos), _cut(after, end=turns.asks)
    return turns.asks, turns.asked


def _parts(chat: Chat, messages: Sequence[Message], marks: Sequence[str], prompt: bool = True) -> list[str]:
    """The rendered text cut at each mark, in order; ValueError where one is not there exactly once."""
    rest, found = chat.reveal(chat.render(messages, generation_prompt=prompt)), []
    for mark in marks:
        before, rest = rest.split(mark)
        found.append(before)
    return [*found, rest]


def _shared(one: str, other: str) -> str:
    """What both texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _cut(text: str, start: str = "", end: str = "") -> str:
    """The text without its start and its end; ValueError where it has them not."""
    if not (text.startswith(start) and text.endswith(end)):
        raise ValueError("the template is not made of turns")
    return text[len(start) : len(text) - len(end)]


def _bos(folder: Path) -> tuple[str, bool]:
    """The opening token, and whether llama.cpp puts it there by itself."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    token = settings.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else "", bool(settings.get("add_bos_token", False))
