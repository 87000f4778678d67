"""Messages to token ids and back; text in a message never becomes a control token.

The model's chat template is rendered on the true contents, and it is known which characters the template wrote itself
(`traced_template.py`). The text is cut at the control tokens among those, and each piece between them is encoded by a
copy of the tokenizer that cannot produce a control token. So `<|im_end|>` in feedback stays plain text whatever the
template is, while tokens merge across the border of template and content as usual: for contents without control tokens
the ids equal those of `apply_chat_template`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.text import THINKING, well_formed
from sdpo_mlx.models.control_tokens import Pieces, Vocabulary
from sdpo_mlx.models.template_source import TemplateSource, template_source
from sdpo_mlx.models.tokenizer import auto_tokenizer, opening_ids
from sdpo_mlx.models.traced_template import TracedTemplate
from sdpo_mlx.types import Generation, IntArray, Message

Shape = tuple[tuple[str, bool], ...]  # role, and whether there is text, of each message
Tools = Sequence[Mapping[str, Any]]  # JSON schemas, as chat templates expect them

PLACEHOLDER = 0xF0000  # plane 15, private use: the content of message i is chr(PLACEHOLDER + i) in tests of a template
SHAPES_KEPT = 4096
_MARK = "\udfff"  # breaks up control tokens; no content holds a lone surrogate


class Chat:
    """Tokenizer and chat template of one model; made by `load_chat`."""

    def __init__(
        self, tokenizer: Any, source: TemplateSource, thinking: bool, fingerprint: str, eos: frozenset[int]
    ) -> None:
        self.source, self.thinking = source, thinking
        self.tokenizer_hash = fingerprint
        self.opening_ids = opening_ids(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._template, self._tool_template = source.texts
        self._compiled = lru_cache(lambda template: TracedTemplate(template, tokenizer.special_tokens_map))
        self._vocabulary = Vocabulary.parse(self._backend.to_str())
        self._folds_system = lru_cache(maxsize=SHAPES_KEPT)(self._check)
        self.control_ids = self._vocabulary.control_ids
        self.eos_ids = eos | self._end_of_turn()
        self._stops: tuple[str, ...] = ()

    def stopping_at(self, texts: Sequence[str]) -> Chat:
        """Return this chat for answers that end after any of these texts too, outside of thinking; it stays in them."""
        if tuple(texts) == self._stops:
            return self
        made = copy(self)
        made._stops = tuple(texts)
        return made

    def render(self, messages: Sequence[Message], *, tools: Tools = (), generation_prompt: bool = True) -> IntArray:
        """Return the prompt's ids (T,), by default with the opening of the assistant's turn.

        `tools` go to the template's variable of that name. Raises ConfigError if the template refuses
        the roles, drops a message, or does not show tools.
        """
        sane: list[Message] = [_well_formed(message) for message in messages]
        shape = tuple((message["role"], bool(message["content"].strip())) for message in sane)
        schemas = _well_formed(tools)
        if self._folds_system(shape, generation_prompt, json.dumps(schemas)):
            sane = _folded(sane)
        ids: list[int] = []
        for position, piece in enumerate(self._pieces(sane, generation_prompt, schemas)):
            ids += [piece] if isinstance(piece, int) else self._encode(piece, opens=position == 0)
        return np.array(ids, dtype=np.int32)

    def written_calls(self, name: str, arguments: Mapping[str, Any], tools: Tools) -> list[str]:
        """Return an assistant's tool call as the template writes it, decoded like an answer; empty if it doesn't.

        There are two: most templates take the arguments as an object, some as JSON in a text.
        """
        asked, texts = chr(PLACEHOLDER), []
        for form in (arguments, json.dumps(arguments)):
            call = {"type": "function", "id": "000000000", "function": {"name": name, "arguments": form}}
            answer = {"role": "assistant", "content": "", "tool_calls": [call]}
            messages = cast(list[Message], [{"role": "user", "content": asked}, answer])
            with suppress(ConfigError):
                pieces = self._rendered(messages, False, _well_formed(tools))
                ids = [i for p in pieces for i in ([p] if isinstance(p, int) else self._encode(p, opens=False))]
                texts.append(self.decode(ids).rpartition(asked)[2])
        return [text for text in texts if name in text]

    def serialized(self) -> str:
        """Return the tokenizer as the text of a tokenizer.json."""
        return str(self._backend.to_str())

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text in the middle of a prompt, never a control id."""
        return self._encode(well_formed(text), opens=False)

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of ids without special tokens; broken UTF-8 becomes U+FFFD, unknown ids are left out."""
        return str(self._backend.decode([int(i) for i in ids if int(i) not in self.eos_ids], skip_special_tokens=True))

    def answer(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of generated ids, up to the text at which answers end."""
        text, stop, _ = self.decode(ids).partition(self.source.stop or "\0")
        return text.rstrip() if stop else text

    def at_stop_text(self, ids: Sequence[int]) -> bool:
        """Return whether the last of these generated ids completes a text at which answers end."""
        for stop in (self.source.stop, *self._stops):
            # Most tokens cannot be the last, and a text is complete within few: each has a byte of it at least.
            if stop and stop[-1] in self.decode(ids[-1:]) and stop in self.decode(ids[-4 * len(stop) - 4 :]):
                return self._is_over(self.decode(ids))
        return False

    def ended(self, generation: Generation) -> Generation:
        """Return what was generated until a stop text was complete, which then ends it."""
        ids_T = generation.ids_T
        if not (self.source.stop or self._stops) or not self._is_over(self.decode(ids_T)):
            return generation
        size = bisect_left(range(ids_T.size), True, key=lambda n: self._is_over(self.decode(ids_T[:n])))
        return replace(generation, ids_T=ids_T[:size], logps_T=generation.logps_T[:size], finish="stop")

    def _is_over(self, text: str) -> bool:
        """Return whether a generated text holds a stop text."""
        if self.source.stop and self.source.stop in text:
            return True
        thinks = self.thinking or THINKING[0] in text
        answer = text.rpartition(THINKING[1])[2] if not thinks or THINKING[1] in text else ""
        return any(stop in answer for stop in self._stops)

    def reveal(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of ids with every special token written out: for display, never to encode again."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def _encode(self, text: str, *, opens: bool) -> list[int]:
        encoder = self._vocabulary.first if opens else self._vocabulary.later
        return list(encoder.encode(text, add_special_tokens=False).ids)

    def _pieces(self, messages: Sequence[Message], generation_prompt: bool, tools: list[Any]) -> Pieces:
        """Return the rendered prompt: ids of the template's control tokens, and the text between them."""
        try:
            return self._rendered(messages, generation_prompt, tools)
        except ConfigError:
            # gpt-oss's template refuses contents that hold some of its control tokens.
            broken: list[Message] = [{**m, "content": self._vocabulary.broken(m["content"], _MARK)} for m in messages]
            if broken == list(messages):
                raise
            pieces = self._rendered(broken, generation_prompt, tools)
            return tuple(piece if isinstance(piece, int) else piece.replace(_MARK, "") for piece in pieces)

    def _rendered(self, messages: Sequence[Message], generation_prompt: bool, tools: list[Any]) -> Pieces:
        try:
            text = self._compiled(self._tool_template if tools else self._template).render(
                messages,
                tools=tools or None,
                add_generation_prompt=generation_prompt,
                enable_thinking=self.thinking,
            )
        except Exception as error:  # a template may raise anything, mostly about roles
            fix = "use roles that this model supports, in turns of user and assistant"
            raise ConfigError(f"the chat template refuses the messages: {error}", fix=fix) from error
        return self._vocabulary.split(text)

    def _check(self, shape: Shape, generation_prompt: bool, tools: str) -> bool:
        """Return whether the system message must be put in front of the first user message.

        `tools` are JSON. Raises ConfigError if the template refuses the roles, drops a message, or shows no tools.
        """
        messages = _placeholders(shape)
        schemas = json.loads(tools)
        try:
            pieces, folds = self._rendered(messages, generation_prompt, schemas), False
        except ConfigError:
            if [role for role, _ in shape[:2]] != ["system", "user"]:
                raise
            messages = _folded(messages)
            pieces, folds = self._rendered(messages, generation_prompt, schemas), True
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        for message in messages:
            if any(letter not in text for letter in message["content"] if ord(letter) >= PLACEHOLDER):
                raise ConfigError(f"the chat template drops a {message['role']} message", fix="leave that message out")
        if schemas and pieces == self._rendered(messages, generation_prompt, []):
            fix = "choose a task that writes its tools into the question, such as tools in place of tools:json"
            raise ConfigError("the model's chat template does not support tools", where="task.name", fix=fix)
        return folds

    def _end_of_turn(self) -> frozenset[int]:
        """Return the control token that follows an assistant's content in the template."""
        messages = _placeholders((("user", True), ("assistant", True)))
        try:
            pieces = self._rendered(messages, False, [])
        except ConfigError:
            return frozenset()
        answer = messages[1]["content"]
        places = [i for i, piece in enumerate(pieces) if isinstance(piece, str) and answer in piece]
        after = [piece for piece in pieces[places[-1] :] if isinstance(piece, int)] if places else []
        return frozenset(after[:1])


def _placeholders(shape: Shape) -> list[Message]:
    contents = [chr(PLACEHOLDER + i) if text else "" for i, (_, text) in enumerate(shape)]
    return [cast(Message, {"role": role, "content": text}) for (role, _), text in zip(shape, contents, strict=True)]


def _folded(messages: list[Message]) -> list[Message]:
    """Return the messages for a template without a system role: its text goes in front of the first user message."""
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _well_formed(value: Any) -> Any:
    """Return a JSON value without lone surrogates."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {well_formed(str(name)): _well_formed(item) for name, item in value.items()}
    return [_well_formed(item) for item in value] if isinstance(value, list | tuple) else value


def load_chat(path: str | Path, *, thinking: bool = False, template: str = "auto") -> Chat:
    """Return the chat of the model in a folder; nothing is downloaded and no code of the folder is run.

    `thinking` is passed to the template (Qwen3's `enable_thinking`); `template` is the setting
    `model.chat_template`. Raises ConfigError if the folder has no readable tokenizer, or the template is not valid.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError("no model folder here", where=str(path), fix="give the folder that holds tokenizer.json")
    try:
        tokenizer: Any = auto_tokenizer().from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # a damaged or unusual folder may raise anything
        what = f"the tokenizer cannot be read: {' '.join(str(error).split())[:200]}"
        raise ConfigError(what, where=str(path), fix="use a model that has a tokenizer.json") from error
    templates = template_source(tokenizer, template, str(path))
    # The fingerprint is of what determines the ids: the tokenizer's file and the templates.
    file = folder / "tokenizer.json"
    source = hashlib.sha256(file.read_bytes() if file.is_file() else backend.to_str().encode())
    fingerprint = hashlib.sha256(source.digest() + "".join(dict.fromkeys(templates.texts)).encode()).hexdigest()
    return Chat(tokenizer, templates, thinking, fingerprint, _configured_eos(folder, tokenizer))


def _configured_eos(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return all end-of-sequence ids of the tokenizer, generation_config.json and config.json."""
    found = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for section in (config, config.get("text_config") or {}):
            ids = section.get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
    return frozenset(int(i) for i in found if i is not None)
