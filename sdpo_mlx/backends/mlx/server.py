"""Serves a base and its adapter: both share the weights of the base, and one thread computes for both.

Prompts are those of training and `sdpo chat`: text in a message never becomes a control token. On a CPU the models
compute in float32, as training does.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sdpo_mlx.backends.mlx.limits import device_limits, no_wiring
from sdpo_mlx.backends.mlx.loading import check_batching, device_name
from sdpo_mlx.backends.mlx.mlx_lm_api import (
    TextStateMachine,
    load_adapters,
    load_model,
    load_tokenizer,
    make_text_state_machine,
    mlx_lm_generate,
)
from sdpo_mlx.backends.mlx.serving_engine import MLXEngine
from sdpo_mlx.backends.serving.http import Server
from sdpo_mlx.backends.serving.jobs import Job
from sdpo_mlx.backends.serving.json_mode import json_grammar
from sdpo_mlx.backends.serving.replies import Choice, Reply, StopText
from sdpo_mlx.backends.serving.requests import ApiError, ChatRequest, CompletionRequest, Request
from sdpo_mlx.config import MemoryConfig, ModelConfig
from sdpo_mlx.core.errors import ConfigError, SdpoError
from sdpo_mlx.models.chat_template import Chat, load_chat

DEFAULT_TOKENS = 512  # of a reply, if a request names no number; mlx-lm's default
CALL_END = "\0"  # between the texts of two tool calls
LONGEST_TOKEN = 256  # characters; a longer text has more tokens than the context for certain


@dataclass(frozen=True)
class Served:
    """What is served, and under which names; `adapter` is the run's folder or another with an adapter."""

    path: Path
    model: ModelConfig
    base_name: str
    adapter: Path | None = None
    adapter_name: str = ""
    memory: MemoryConfig = field(default_factory=MemoryConfig)


class MLXService:
    """Turns requests into jobs of the engine."""

    def __init__(self, served: Served) -> None:
        self.served = served
        chat = self._chat(served.model.thinking)
        self.names: Sequence[str] = [*([served.adapter_name] if served.adapter is not None else []), served.base_name]
        # mlx-lm's tokenizer knows how the model writes reasoning and tool calls; it encodes nothing here.
        self._tokenizer = load_tokenizer(served.path, {"trust_remote_code": False, "local_files_only": True})
        self._anchor = chat.encode_plain("a")
        config = json.loads((served.path / "config.json").read_text(encoding="utf-8"))
        section = {**config, **(config.get("text_config") or {})}
        self.context = int(section.get("max_position_embeddings") or 4_096)
        self.engine = MLXEngine(self._load, chat.eos_ids)

    def begin(self, request: Request) -> Reply:
        """See `Service.begin`."""
        name = self.names[0] if request.model in ("", "default_model") else request.model
        if name not in self.names:
            known = ", ".join(self.names)
            raise ApiError(404, f"no model {name[:200]!r} here; there are: {known}", "model", "model_not_found")
        if any(not 0 <= token < self.engine.vocab_size for token in request.bias):
            raise ApiError(400, f"logit_bias: token ids are 0 to {self.engine.vocab_size - 1}", "logit_bias")
        prompt = self._prompt(request)
        room = self.context - len(prompt)
        if room < 1:
            what = f"the prompt has {len(prompt)} tokens, and the model's context is {self.context}"
            raise ApiError(400, what, "messages", "context_length_exceeded")
        grammar = None
        if isinstance(request, ChatRequest) and (schema := request.response_format.schema_text()) is not None:
            grammar = json_grammar(self._chat(self.served.model.thinking), self.engine.vocab_size, schema)
        job = Job(name, prompt, min(request.limit or DEFAULT_TOKENS, room), request, grammar)
        choices = [Choice(self._parts(request, prompt)) for _ in range(request.n)]
        self.engine.submit(job)
        return Reply(job, name, choices, self.readable)

    def readable(self, token: int) -> str:
        """Return a token as text, with its leading space."""
        chat = self._chat(self.served.model.thinking)
        return chat.reveal([*self._anchor, token]).removeprefix(chat.reveal(self._anchor))

    def _prompt(self, request: Request) -> list[int]:
        chat = self._chat(self.served.model.thinking)
        if isinstance(request, CompletionRequest):
            self._check_size(len(request.prompt), 1)
            return [*chat.opening_ids, *chat.encode_plain(request.prompt)]
        self._check_size(sum(len(message.content) for message in request.messages), len(request.messages))
        thinking = request.chat_template_kwargs.enable_thinking
        chat = chat if thinking is None else self._chat(thinking)
        tools = request.tools if request.tool_choice == "auto" else []
        messages: Any = [message.as_template() for message in request.messages]
        try:
            return [int(token) for token in chat.render(messages, tools=tools)]
        except SdpoError as error:
            # The rest of the message is about settings of a run.
            what = str(error).partition(" (task.name)")[0][:500]
            raise ApiError(400, what, "tools" if "support tools" in what else "messages") from error

    def _check_size(self, characters: int, messages: int) -> None:
        """Refuse early what would take long to encode, and cannot fit."""
        if characters > LONGEST_TOKEN * self.context or messages > self.context:
            what = (
                f"the prompt has {characters} characters in {messages} messages; the context is {self.context} tokens"
            )
            raise ApiError(400, what, "messages", "context_length_exceeded")

    def _chat(self, thinking: bool) -> Chat:
        return _loaded_chat(self.served.path, thinking, self.served.model.chat_template)

    def _parts(self, request: Request, prompt: Sequence[int]) -> _Parts:
        if isinstance(request, CompletionRequest):
            return _Parts(self._tokenizer, None, "normal", request.stop, [])
        stops = [*request.stop, self._chat(self.served.model.thinking).source.stop]
        initial = "normal"
        if self._tokenizer.has_thinking:
            ids = list(prompt)
            opened = self._tokenizer.rfind_think_start(ids) > self._tokenizer.rfind_think_end(ids)
            initial = "reasoning" if opened else "normal"
        initial = self._tokenizer.response_initial_state or initial
        return _Parts(self._tokenizer, make_text_state_machine(self._tokenizer), initial, stops, request.tools)

    def _load(self) -> Mapping[str, tuple[nn.Module, bool]]:
        """Return the models by name, and whether their rows can be decoded together."""
        base, config = load_model(self.served.path, lazy=True)
        if device_name() == "cpu":
            base.set_dtype(mx.float32)
        mx.eval(base.parameters())
        models = {self.served.base_name: base}
        if self.served.adapter is not None:
            adapted, _ = load_model(self.served.path, lazy=True)
            adapted.update(base.parameters())  # the same arrays: the base is in memory once
            load_adapters(adapted, str(self.served.adapter))
            mx.eval(adapted.parameters())
            adapted.eval()
            models[self.served.adapter_name] = adapted
        vocab = int({**config, **(config.get("text_config") or {})}.get("vocab_size", 1_000))
        batched = check_batching(base, vocab)
        return {name: (model, batched) for name, model in models.items()}


@lru_cache(maxsize=2)
def _loaded_chat(path: Path, thinking: bool, template: str) -> Chat:
    return load_chat(path, thinking=thinking, template=template)


class _Parts:
    """See `TextParts`: mlx-lm's detokenizer and state machine, behind the stop texts."""

    def __init__(self, tokenizer: Any, machine: Any, initial: str, stops: Sequence[str], tools: list[Any]) -> None:
        self._tokenizer, self._tools = tokenizer, tools
        self._detokenizer, self._stop = tokenizer.detokenizer, StopText(stops)
        self._state = (machine or TextStateMachine()).make_state(initial)

    @property
    def ended(self) -> bool:
        """See `TextParts.ended`."""
        return self._stop.ended

    def feed(self, token: int, finish: str | None) -> dict[str, str]:
        """See `TextParts.feed`."""
        if finish != "stop":
            self._detokenizer.add_token(token)
        if finish is not None:
            self._detokenizer.finalize()
        text = self._stop.feed(self._detokenizer.last_segment)
        if finish is not None and not self._stop.ended:
            text += self._stop.rest()
        self._state, found = TextStateMachine.split(self._state, text)
        if finish is not None or self._stop.ended:
            self._state, rest, kind = TextStateMachine.flush(self._state)
            found.append((kind, rest))
        parts = {"content": "", "reasoning": "", "tool": ""}
        for (kind, piece), (after, _) in zip(found, [*found[1:], found[-1]], strict=True):
            parts[kind if kind in parts else "content"] += piece
            parts["tool"] += CALL_END if kind == "tool" != after else ""
        return parts

    def tool_calls(self, text: str) -> list[dict[str, Any]]:
        """See `TextParts.tool_calls`."""
        made = []
        for one in filter(str.strip, text.split(CALL_END)):
            with suppress(Exception):  # a parser may raise anything on a model's text
                read = self._tokenizer.tool_parser(one, self._tools)
                for call in read if isinstance(read, list) else [read]:
                    arguments = json.dumps(call["arguments"], ensure_ascii=False)
                    function = {"name": str(call["name"]), "arguments": arguments}
                    made.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        return made


def serve(
    served: Served, host: str, port: int, key: str, ready: Callable[[], None], report: Callable[[str], None]
) -> None:
    """Serve until interrupted; `ready` is called when requests are answered, `report` with a line for each failure.

    Raise ConfigError if the address is not free or the model cannot be loaded.
    """
    _free(host, port)
    with device_limits(served.memory), no_wiring(mlx_lm_generate):
        service = MLXService(served)
        try:
            service.engine.start()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            fix = "fetch or import the model again, and try `sdpo chat` with it"
            raise ConfigError(f"the model cannot be loaded: {reason}", where=str(served.path), fix=fix) from error
        with suppress(KeyboardInterrupt), Server(host, port, service, key, report) as server:
            ready()
            server.serve_forever()
        service.engine.stop()


def _free(host: str, port: int) -> None:
    """Raise ConfigError if the address is not free; checked before a large model loads."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        fix = "choose another --port, or stop the program that uses it"
        raise ConfigError(f"cannot listen: {cause}", where=f"{host}:{port}", fix=fix) from error
