"""Conversations with a model, with its adapter or without, token by token.

What a person types is data like everything else: it goes through the model's chat template as plain text. A
conversation that outgrows the context loses its oldest exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sdpo_mlx.backends.base import Arrays, Policy, SamplingParams
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.text import strip_thinking
from sdpo_mlx.models import resolve
from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.targets import adapter_home
from sdpo_mlx.types import IntArray, Message

AdapterChoice = Literal["model", "base", "adapter"]
LEAST_ROOM = 4  # an answer has at least this part of the context, or of what it asked for


@dataclass(frozen=True)
class Reply:
    """What was said: `finish` is `stop`, `length`, or `interrupted`; `dropped` exchanges were forgotten for it."""

    text: str
    finish: str
    tokens: int
    dropped: int


class ChatModel:
    """A model that answers in one of its voices: `model` alone, or `base` and `adapter`."""

    def __init__(
        self, policy: Policy, chat: Chat, sampling: SamplingParams, seed: int, voices: dict[AdapterChoice, Arrays]
    ) -> None:
        self.policy, self.chat, self.sampling, self.seed, self.voices = policy, chat, sampling, seed, voices
        self.context = policy.info.context_length
        self._speaks: AdapterChoice | None = None

    @classmethod
    def of(cls, components: Components, sampling: SamplingParams) -> ChatModel:
        """Return the model of open components as it is, with the adapter that its student holds."""
        policy, chat = components.policy, components.chat
        sampling = replace(sampling, eos_ids=chat.eos_ids)
        return cls(policy, chat, sampling, components.cfg.train.seed, {"model": policy.state()["student"]})

    def as_voice(self, voice: AdapterChoice) -> Policy:
        """The policy with that voice's weights in place."""
        if voice != self._speaks:
            self.policy.load_student(self.voices[voice])
            self._speaks = voice
        return self.policy


class Conversation:
    """One voice's side of a chat: it remembers its own answers."""

    def __init__(self, speaker: ChatModel, voice: AdapterChoice) -> None:
        self.speaker, self.voice = speaker, voice
        self.messages: list[Message] = []
        self.last = Reply("", "stop", 0, 0)

    def ask(self, question: str, interrupted: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Pieces of the answer as they come; afterwards `last` has the whole.

        Raises DataError where the question alone leaves no room for an answer.
        """
        prompt, dropped = self._fitted(question)
        room = self.speaker.context - prompt.size
        sampling = replace(self.speaker.sampling, max_tokens=min(self.speaker.sampling.max_tokens, room))
        seed = derive(self.speaker.seed, len(self.messages))
        pieces, ids, finish = Pieces(self.speaker.chat), list[int](), "length"
        for token in self.speaker.as_voice(self.voice).stream(prompt, sampling, seed):
            ids.append(token)
            finish = "stop" if token in sampling.eos_ids else "length"
            if finish != "stop" and (piece := pieces.feed(token)):
                yield piece
            if finish != "stop" and interrupted():
                finish = "interrupted"
                break
        if rest := pieces.rest():
            yield rest
        text = self.speaker.chat.decode(ids)
        self.last = Reply(text, finish, len(ids), dropped)
        # Templates leave earlier thinking out, and must not have to look for it.
        self.messages.append({"role": "assistant", "content": strip_thinking(text)})

    def forget(self) -> None:
        """Begin anew."""
        self.messages.clear()

    def _fitted(self, question: str) -> tuple[IntArray, int]:
        """The prompt with as much of the conversation as leaves room, and how many exchanges had to go."""
        self.messages.append({"role": "user", "content": question})
        least = min(self.speaker.sampling.max_tokens, self.speaker.context // LEAST_ROOM)
        dropped = 0
        while (prompt := self.speaker.chat.render(self.messages)).size + least > self.speaker.context:
            if len(self.messages) == 1:
                break
            del self.messages[:2]
            dropped += 1
        if prompt.size >= self.speaker.context:
            self.messages.clear()
            what = f"the question has {prompt.size} tokens with its frame, the model takes {self.speaker.context}"
            raise DataError(what, fix="ask a shorter one")
        return prompt, dropped


class Pieces:
    """Text of tokens that come one by one: a character of several tokens waits until it is whole."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._ids: list[int] = []
        self._known = 0  # tokens whose text was given; they stay as context, for decoders that look back

    def feed(self, token: int) -> str:
        """The text that this token completes, blank while it completes none."""
        self._ids.append(token)
        text = self._new()
        if text.endswith("\ufffd"):
            return ""
        if text:
            self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return text

    def rest(self) -> str:
        """What never became whole."""
        return self._new()

    def _new(self) -> str:
        before = self._chat.decode(self._ids[: self._known])
        return self._chat.decode(self._ids)[len(before) :]


def open_speaker(target: str, cfg: Config, sampling: SamplingParams, adapter: Path | None = None) -> ChatModel:
    """The TARGET's model and, where it has one, its adapter; no task and no sandbox is opened.

    `sampling.eos_ids` are the model's own. Raises ConfigError or StorageError, each with one line.
    """
    home = adapter_home(target, adapter)
    # Read first: a missing adapter is told before a large model loads.
    arrays = RunFolder(home).load_adapter()[0] if home is not None else None
    model = resolve.resolve(cfg.model.name)
    chat = load_chat(model.path, thinking=cfg.model.thinking)
    policy = open_policy(model.path, cfg.model, cfg.teacher, cfg.train)
    untouched = policy.state()["student"]
    voices: dict[AdapterChoice, Arrays] = (
        {"model": untouched} if arrays is None else {"base": untouched, "adapter": arrays}
    )
    return ChatModel(policy, chat, replace(sampling, eos_ids=chat.eos_ids), cfg.train.seed, voices)
