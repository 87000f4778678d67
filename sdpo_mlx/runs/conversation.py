"""Streaming chat with a model, with or without its adapter.

What a user types is untrusted like everything else: it goes through the chat template as plain text. A conversation
that outgrows the context loses its oldest exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sdpo_mlx.backends.base import Arrays, Policy, SamplingParams
from sdpo_mlx.backends.preflight import checked_model
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.text import strip_thinking
from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs.targets import load_adapter
from sdpo_mlx.types import IntArray, Message

AdapterChoice = Literal["model", "base", "adapter"]
MIN_SHARE = 4  # a reply has room for at least one fourth of the context, or for `max_tokens`


@dataclass(frozen=True)
class Reply:
    """A reply; `finish` is `stop`, `length` or `interrupted`, `dropped` counts exchanges dropped before it."""

    text: str
    finish: str
    tokens: int
    dropped: int


class ChatModel:
    """A model with its adapters by name: `model` alone, or `base` and `adapter`."""

    def __init__(
        self, policy: Policy, chat: Chat, sampling: SamplingParams, seed: int, adapters: dict[AdapterChoice, Arrays]
    ) -> None:
        self.policy, self.chat, self.seed, self.adapters = policy, chat, seed, adapters
        self.sampling = replace(sampling, eos_ids=chat.eos_ids, at_stop_text=chat.at_stop_text)
        self.context = policy.info.context_length
        self._loaded: AdapterChoice | None = None

    @classmethod
    def of(cls, components: Components, sampling: SamplingParams) -> ChatModel:
        """Return the model of open components as it is, with the adapter that its student holds."""
        policy, seed = components.policy, components.cfg.train.seed
        chat = components.chat.stopping_at(())  # `rollout.stop` is for the task
        return cls(policy, chat, sampling, seed, {"model": policy.state()["student"]})

    def policy_with(self, adapter: AdapterChoice) -> Policy:
        """Return the policy with this adapter loaded."""
        if adapter != self._loaded:
            self.policy.load_student(self.adapters[adapter])
            self._loaded = adapter
        return self.policy


class Conversation:
    """A conversation with one adapter, with its history."""

    def __init__(self, model: ChatModel, adapter: AdapterChoice) -> None:
        self.model, self.adapter = model, adapter
        self.messages: list[Message] = []
        self.last = Reply("", "stop", 0, 0)

    def ask(self, question: str, interrupted: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the reply in pieces; afterwards `last` has all of it.

        Raises DataError if the question alone fills the context.
        """
        model = self.model
        prompt, dropped = self._prompt(question)
        sampling = replace(model.sampling, max_tokens=min(model.sampling.max_tokens, model.context - prompt.size))
        seed = derive(model.seed, len(self.messages))
        pieces, ids, finish = Pieces(model.chat, model.chat.source.stop), list[int](), "length"
        for token in model.policy_with(self.adapter).stream(prompt, sampling, seed):
            ids.append(token)
            finish = "stop" if token in sampling.eos_ids else "length"
            if finish != "stop" and (piece := pieces.feed(token)):
                yield piece
            if pieces.ended:
                finish = "stop"
                break
            if finish != "stop" and interrupted():
                finish = "interrupted"
                break
        if rest := pieces.rest():
            yield rest
        text = model.chat.answer(ids)
        self.last = Reply(text, finish, len(ids), dropped)
        # Removed here, since not every template leaves out earlier thinking.
        self.messages.append({"role": "assistant", "content": strip_thinking(text)})

    def clear(self) -> None:
        """Start a new conversation."""
        self.messages.clear()

    def _prompt(self, question: str) -> tuple[IntArray, int]:
        """Return the prompt with as much history as fits, and how many exchanges were dropped."""
        model = self.model
        self.messages.append({"role": "user", "content": question})
        least = min(model.sampling.max_tokens, model.context // MIN_SHARE)
        dropped = 0
        while (prompt := model.chat.render(self.messages)).size + least > model.context and len(self.messages) > 1:
            del self.messages[:2]
            dropped += 1
        if prompt.size >= model.context:
            self.messages.clear()
            what = f"the question has {prompt.size} tokens with the chat template, the model takes {model.context}"
            raise DataError(what, fix="shorten it")
        return prompt, dropped


class Pieces:
    """Text of a stream of tokens; held back are characters of several tokens, and what may begin the `stop` text."""

    def __init__(self, chat: Chat, stop: str = "") -> None:
        self._chat, self._stop = chat, stop
        self.ended = False  # whether the stop text is complete
        self._held = ""
        self._ids: list[int] = []
        self._known = 0  # tokens whose text was returned; they stay as context for the decoder

    def feed(self, token: int) -> str:
        """Return the text that this token completes, empty if it completes none."""
        self._ids.append(token)
        text = self._new()
        if text.endswith("\ufffd"):
            return ""
        if text:
            self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        self._held += text
        if not self._stop:
            return self._released(len(self._held))
        self.ended = self._stop in self._held
        if self.ended:
            self._held, self._ids, self._known = self._held.partition(self._stop)[0], [], 0
        begun = (n for n in range(len(self._stop) - 1, 0, -1) if self._held.endswith(self._stop[:n]))
        return self._released(len(self._held) - (0 if self.ended else next(begun, 0)))

    def rest(self) -> str:
        """Return the text held back."""
        return self._held + self._new()

    def _new(self) -> str:
        before = self._chat.decode(self._ids[: self._known])
        return self._chat.decode(self._ids)[len(before) :]

    def _released(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text


def open_chat_model(target: str, cfg: Config, sampling: SamplingParams, adapter: Path | None = None) -> ChatModel:
    """Open a TARGET's model and its adapter if there is one, but neither task nor sandbox.

    What ends a reply in `sampling` is replaced by the model's. Raises ConfigError or StorageError.
    """
    arrays = load_adapter(target, adapter)
    model = checked_model(cfg.model.name, backend=cfg.model.backend)
    chat = load_chat(model.path, thinking=cfg.model.thinking, template=cfg.model.chat_template)
    policy = open_policy(model.path, cfg.model, cfg.teacher, cfg.train, cfg.memory)
    initial = policy.state()["student"]
    adapters: dict[AdapterChoice, Arrays] = {"model": initial}
    if arrays is not None:
        adapters = {"base": initial, "adapter": arrays}
    return ChatModel(policy, chat, sampling, cfg.train.seed, adapters)
