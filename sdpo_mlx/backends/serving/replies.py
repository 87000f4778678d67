"""Tokens to OpenAI's replies, whole or in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sdpo_mlx.backends.serving.jobs import Job, Token
from sdpo_mlx.backends.serving.requests import ChatRequest


class StopText:
    """Text up to the first of some texts; what may begin one of them is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.ended = [stop for stop in stops if stop], "", False

    def feed(self, text: str) -> str:
        """Return the text that is certain."""
        if self.ended:
            return ""
        self._held += text
        if found := [at for stop in self._stops if (at := self._held.find(stop)) >= 0]:
            self.ended, text, self._held = True, self._held[: min(found)], ""
            return text
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def rest(self) -> str:
        """Return what was held back, at the end."""
        text, self._held = self._held, ""
        return text


class TextParts(Protocol):
    """Splits a reply's tokens into answer, reasoning and tool calls."""

    def feed(self, token: int, finish: str | None) -> dict[str, str]:
        """Return new text by kind: `content`, `reasoning`, `tool`."""

    @property
    def ended(self) -> bool:
        """Whether a stop text has ended the reply."""

    def tool_calls(self, text: str) -> list[dict[str, Any]]:
        """Return the calls in the text of kind `tool`, empty if there are none that can be read."""


@dataclass
class Choice:
    """What one choice has become so far."""

    parts: TextParts
    finish: str | None = None
    tokens: list[Token] = field(default_factory=list)
    text: dict[str, str] = field(default_factory=lambda: {"content": "", "reasoning": "", "tool": ""})
    calls: list[dict[str, Any]] = field(default_factory=list)
    sent: int = 0  # tokens whose log-probabilities were sent


class Reply:
    """The reply to one request."""

    def __init__(self, job: Job, name: str, choices: Sequence[Choice], readable: Callable[[int], str]) -> None:
        self.job, self.choices, self._readable = job, list(choices), readable
        self.chat = isinstance(job.request, ChatRequest)
        kind = (
            ("chat.completion.chunk" if job.request.stream else "chat.completion") if self.chat else "text_completion"
        )
        self._head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }

    def feed(self, token: Token) -> dict[str, Any] | None:
        """Add a token; return the chunk that it completes, None if it completes none."""
        choice = self.choices[token.choice]
        choice.tokens.append(token)
        new = choice.parts.feed(token.id, token.finish)
        choice.finish = "stop" if choice.parts.ended else token.finish
        if choice.finish is not None:
            self.job.ended.add(token.choice)
        for kind, text in new.items():
            choice.text[kind] += text
        delta = {kind: text for kind, text in new.items() if text and kind != "tool"}
        if choice.finish is not None and choice.text["tool"]:
            choice.calls = choice.parts.tool_calls(choice.text["tool"])
            if not choice.calls:  # cut off, or not a call: shown as it is
                choice.text["content"] += choice.text["tool"]
                delta["content"] = delta.get("content", "") + choice.text["tool"]
        if choice.calls and choice.finish == "stop":
            choice.finish = "tool_calls"
        return self._chunk(token.choice, delta) if delta or choice.finish is not None else None

    def first_chunk(self, index: int) -> dict[str, Any]:
        """Return the chunk that opens a choice of a chat."""
        return self._head | {"choices": [{"index": index, "delta": {"role": "assistant", "content": ""}}]}

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = self.choices[index]
        made: dict[str, Any] = {"index": index, "finish_reason": choice.finish}
        if self.chat:
            calls = [{"index": i, **call} for i, call in enumerate(choice.calls)]
            made["delta"] = delta | ({"tool_calls": calls} if calls else {})
        else:
            made["text"] = delta.get("content", "")
        if self.job.request.alternatives is not None:
            made["logprobs"] = self._logprobs(choice.tokens[choice.sent :])
            choice.sent = len(choice.tokens)
        return self._head | {"choices": [made]}

    def usage_chunk(self) -> dict[str, Any]:
        """Return the last chunk of `stream_options.include_usage`."""
        return self._head | {"choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Return the counted tokens."""
        prompt, made = len(self.job.prompt), sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def whole(self) -> dict[str, Any]:
        """Return the reply without streaming."""
        made = []
        for index, choice in enumerate(self.choices):
            one: dict[str, Any] = {"index": index, "finish_reason": choice.finish}
            if self.chat:
                content = choice.text["content"]
                one["message"] = {"role": "assistant", "content": None if choice.calls and not content else content}
                one["message"] |= {"tool_calls": choice.calls} if choice.calls else {}
                one["message"] |= {"reasoning": choice.text["reasoning"]} if choice.text["reasoning"] else {}
            else:
                one["text"] = choice.text["content"]
            wanted = self.job.request.alternatives is not None
            one["logprobs"] = self._logprobs(choice.tokens) if wanted else None
            made.append(one)
        return self._head | {"choices": made, "usage": self.usage()}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        # The token that ends a reply is no part of its text.
        shown = [(self._readable(token.id), token) for token in tokens if token.finish != "stop"]
        if self.chat:
            return {
                "content": [
                    self._token(token.id, token.logp) | {"top_logprobs": [self._token(*each) for each in token.top]}
                    for _, token in shown
                ]
            }
        ends = [sum(len(text) for text, _ in shown[:n]) for n in range(len(shown))]
        return {
            "tokens": [text for text, _ in shown],
            "token_logprobs": [token.logp for _, token in shown],
            "top_logprobs": [{self._readable(i): logp for i, logp in token.top} for _, token in shown],
            "text_offset": ends,
        }

    def _token(self, token: int, logp: float) -> dict[str, Any]:
        text = self._readable(token)
        # A part of a character has no text of its own.
        return {"token": text, "logprob": logp, "bytes": None if "\ufffd" in text else list(text.encode())}


def event(chunk: dict[str, Any]) -> bytes:
    """Return a chunk as a server-sent event."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
