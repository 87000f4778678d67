"""Ollama's Modelfile for an exported GGUF: its prompts must be those of training.

Ollama does not use the chat template inside a GGUF: it recognizes some templates and sends the bare question
to other models. So the template is written as a Go template, derived from prompts that the chat renders.
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
    """Return the Modelfile for the file `gguf` beside it, exported from the model in `folder`.

    It has no TEMPLATE if the model's cannot be written as a Go template; Ollama then uses its default.
    """
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    bos = settings.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    # llama.cpp adds the token by itself if the tokenizer does.
    template = go_template(chat, bos if isinstance(bos, str) else "", bool(chat.opening_ids))
    stops = [token for i in sorted(chat.eos_ids) if '"' not in (token := chat.reveal([i]))]
    stops += [chat.source.stop.replace("\n", "\\n")] if chat.source.stop else []
    lines = [f"FROM ./{gguf}"]
    lines += [f'TEMPLATE """{template}"""'] if template is not None else []
    lines += [f'PARAMETER stop "{token}"' for token in stops]
    return "\n".join(lines) + "\n"


def go_template(chat: Chat, bos: str = "", added: bool = False) -> str | None:
    """Return the chat as a Go template over `.Messages`, None if it cannot be written as one.

    `bos` is the token that may open a prompt; `added` means that the reader of the GGUF adds it by itself.
    """
    try:
        turns = _turns(chat)
        start = _cut(turns.opens, end=turns.asks)
        begun = bos if bos and start.startswith(bos) and not turns.asks.startswith(bos) else ""
        default = _cut(start, begun)
        messages: list[Message] = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _FIRST}]
        before, after, _ = _parts(chat, messages, (_SYSTEM, _FIRST))
        if turns.asks and after.endswith(turns.asks):
            before, after = _cut(before, begun), _cut(after, end=turns.asks)
        else:  # merged into the question: it becomes a turn of its own
            before, after = turns.asks, turns.asked
    except (ConfigError, ValueError):
        return None
    roles = {
        "system": (before, after),
        "user": (turns.asks, turns.asked),
        "assistant": (turns.earlier, turns.replied),
    }
    inner = [turns.answers, default, begun, *(piece for pair in roles.values() for piece in pair)]
    if any("{{" in piece or '"""' in piece for piece in inner):
        return None
    cases = [f'{{{{ if eq .Role "{r}" }}}}{a}{{{{ .Content }}}}{b}{{{{ end }}}}' for r, (a, b) in roles.items()]
    unsaid = f"{{{{ if not .System }}}}{default}{{{{ end }}}}" if default else ""
    return f"{'' if added else begun}{unsaid}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{turns.answers}"


@dataclass(frozen=True)
class _Turns:
    """The text before and after each content: start, question, answer; earlier answers may differ from the last."""

    opens: str
    asks: str
    asked: str
    answers: str
    earlier: str
    replied: str


def _turns(chat: Chat) -> _Turns:
    first: list[Message] = [{"role": "user", "content": _FIRST}]
    answered: list[Message] = [*first, {"role": "assistant", "content": _ANSWER}]
    opens, ending = _parts(chat, first, (_FIRST,))
    long: list[Message] = [*answered, {"role": "user", "content": _SECOND}]
    _, spoken, between, _ = _parts(chat, long, (_FIRST, _ANSWER, _SECOND))
    # Some templates end the conversation, but not a turn inside it, with an extra token.
    asked = _shared(_parts(chat, first, (_FIRST,), False)[1], ending)
    replied = _shared(_parts(chat, answered, (_ANSWER,), False)[1], between)
    return _Turns(opens, _cut(between, replied), asked, _cut(ending, asked), _cut(spoken, asked), replied)


def _parts(chat: Chat, messages: Sequence[Message], marks: Sequence[str], prompt: bool = True) -> list[str]:
    """Cut the rendered text at each mark, in order; raises ValueError if one is not there exactly once."""
    rest, found = chat.reveal(chat.render(messages, generation_prompt=prompt)), []
    for mark in marks:
        before, rest = rest.split(mark)
        found.append(before)
    return [*found, rest]


def _shared(one: str, other: str) -> str:
    """Return the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _cut(text: str, start: str = "", end: str = "") -> str:
    """Return the text without its start and end; raises ValueError if it does not have them."""
    if not (text.startswith(start) and text.endswith(end)):
        raise ValueError("the template is not made of turns")
    return text[len(start) : len(text) - len(end)]
