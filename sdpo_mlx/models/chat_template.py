"""Messages to token ids and back; text in a message never becomes a control token.

The model's chat template is rendered with a placeholder character for each content (a *frame*). The frame is
cut at the tokenizer's control tokens, the contents replace the placeholders in the plain pieces between them, and
each piece is encoded by a copy of the tokenizer that cannot produce a control token. So `<|im_end|>` in feedback
stays plain text whatever the template is, while tokens merge across the border of frame and content as usual:
for contents without control tokens the ids equal those of `apply_chat_template`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.text import well_formed
from sdpo_mlx.models.control_tokens import Frame, Vocabulary, check_shown, guard
from sdpo_mlx.models.tokenizer import auto_tokenizer
from sdpo_mlx.types import IntArray, Message

Shape = tuple[str, str, bool, str]  # role, leading whitespace, whether there is other text, trailing whitespace
Tools = Sequence[Mapping[str, Any]]  # JSON schemas, as chat templates expect them

PLACEHOLDER = 0xF0000  # plane 15, private use: content i is chr(PLACEHOLDER + i); no template writes these
FRAMES_KEPT = 4096
FIXED_DATE = "2024-07-26"  # the fallback of Llama 3's template; with today's date a resumed run would see other prompts

_PLACEHOLDERS = re.compile(f"[{chr(PLACEHOLDER)}-{chr(PLACEHOLDER + 0xFFFD)}]")
_DATE_FORMATS = re.compile(r"""strftime_now\(\s*(?:"([^"]+)"|'([^']+)')""")


class Chat:
    """Tokenizer and chat template of one model; made by `load_chat`."""

    def __init__(
        self, tokenizer: Any, templates: tuple[str, str], thinking: bool, fingerprint: str, eos: frozenset[int]
    ) -> None:
        self.thinking = thinking
        self.tokenizer_hash = fingerprint
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._template, self._tool_template = map(_with_fixed_date, templates)
        self._vocabulary = Vocabulary.parse(self._backend.to_str())
        self._guard = guard(self._vocabulary.controls)
        self._frame = lru_cache(maxsize=FRAMES_KEPT)(self._build_frame)
        self.control_ids = self._vocabulary.control_ids
        self.eos_ids = eos | self._end_of_turn()

    def render(self, messages: Sequence[Message], *, tools: Tools = (), generation_prompt: bool = True) -> IntArray:
        """Return the prompt's ids (T,), by default with the opening of the assistant's turn.

        `tools` go to the template's variable of that name. Raises ConfigError if the template refuses
        the roles, drops a message, or does not show tools.
        """
        marked = json.dumps(self._guard.mark(tools)) if tools else ""
        shapes: list[Shape] = []
        bodies: list[str] = []
        for message in messages:
            content = well_formed(message["content"])
            bodies.append(content.strip())
            before, _, after = content.partition(bodies[-1]) if bodies[-1] else (content, "", "")
            shapes.append((message["role"], before, bool(bodies[-1]), after))
        ids: list[int] = []
        for position, piece in enumerate(self._frame(tuple(shapes), generation_prompt, marked)):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            text = _PLACEHOLDERS.sub(lambda found: bodies[ord(found[0]) - PLACEHOLDER], piece)
            ids += self._encode(text, opens=position == 0)
        return np.array(ids, dtype=np.int32)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text in the middle of a prompt, never a control id."""
        return self._encode(well_formed(text), opens=False)

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of ids without special tokens; broken UTF-8 becomes U+FFFD, unknown ids are left out."""
        return str(self._backend.decode([int(i) for i in ids if int(i) not in self.eos_ids], skip_special_tokens=True))

    def reveal(self, ids: Sequence[int] | IntArray) -> str:
        """Return the text of ids with every special token written out: for display, never to encode again."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def _encode(self, text: str, *, opens: bool) -> list[int]:
        encoder = self._vocabulary.first if opens else self._vocabulary.later
        return list(encoder.encode(text, add_special_tokens=False).ids)

    def _build_frame(self, shapes: tuple[Shape, ...], generation_prompt: bool, marked_tools: str) -> Frame:
        """Return the frame of these shapes and marked tools (JSON, blank for none)."""
        tools = json.loads(marked_tools) if marked_tools else None
        # A placeholder for each body; outer whitespace stays, since many templates trim it.
        marked = [
            {"role": role, "content": before + (chr(PLACEHOLDER + i) if body else "") + after}
            for i, (role, before, body, after) in enumerate(shapes)
        ]
        try:
            text = self._apply(marked, generation_prompt, tools)
        except ConfigError:
            if [message["role"] for message in marked[:2]] != ["system", "user"]:
                raise
            # A template without a system role: its text goes in front of the first user message.
            marked[:2] = [{"role": "user", "content": f"{marked[0]['content']}\n\n{marked[1]['content']}"}]
            text = self._apply(marked, generation_prompt, tools)
        if tools:
            check_shown(text, self._apply(marked, generation_prompt, None))
        pieces = self._vocabulary.split(text)
        return tuple(piece if isinstance(piece, int) else self._guard.unmark(piece) for piece in pieces)

    def _apply(self, marked: list[dict[str, str]], generation_prompt: bool, tools: list[Any] | None) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                marked,
                tools=tools,
                chat_template=self._tool_template if tools else self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                enable_thinking=self.thinking,
            )
        except Exception as error:  # a template may raise anything, mostly about roles
            fix = "use roles that this model supports, in turns of user and assistant"
            raise ConfigError(f"the chat template refuses the messages: {error}", fix=fix) from error
        for message in marked:
            if any(placeholder not in text for placeholder in _PLACEHOLDERS.findall(message["content"])):
                raise ConfigError(f"the chat template drops a {message['role']} message", fix="leave that message out")
        return str(text)

    def _end_of_turn(self) -> frozenset[int]:
        """Return the control token that follows an assistant's content in the template."""
        try:
            frame = self._frame((("user", "", True, ""), ("assistant", "", True, "")), False, "")
        except ConfigError:
            return frozenset()
        places = [i for i, piece in enumerate(frame) if isinstance(piece, str) and chr(PLACEHOLDER + 1) in piece]
        after = [piece for piece in frame[places[-1] :] if isinstance(piece, int)]
        return frozenset(after[:1])


def load_chat(path: str | Path, *, thinking: bool = False) -> Chat:
    """Return the chat of the model in a folder; nothing is downloaded and no code of the folder is run.

    `thinking` is passed to the template (Qwen3's `enable_thinking`). Raises ConfigError if the folder has
    no readable tokenizer, or no chat template.
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
    try:  # few models have a second template, for prompts with tools
        templates = str(tokenizer.get_chat_template()), str(tokenizer.get_chat_template(tools=[{}]))
    except Exception as error:  # transformers raises ValueError for none and for several without a default
        fix = "use the instruct version of the model, or put a chat_template.jinja into its folder"
        raise ConfigError("the model has no chat template", where=str(path), fix=fix) from error
    # The fingerprint is of what determines the ids: the tokenizer's file and the templates.
    file = folder / "tokenizer.json"
    source = hashlib.sha256(file.read_bytes() if file.is_file() else backend.to_str().encode())
    fingerprint = hashlib.sha256(source.digest() + "".join(dict.fromkeys(templates)).encode()).hexdigest()
    return Chat(tokenizer, templates, thinking, fingerprint, _configured_eos(folder, tokenizer))


def _with_fixed_date(template: str) -> str:
    """Return the template with FIXED_DATE as today's date: a macro replaces `strftime_now`."""
    if "strftime_now" not in template:
        return template
    day = date.fromisoformat(FIXED_DATE)
    formats = {double or single for double, single in _DATE_FORMATS.findall(template)}
    dates = json.dumps({form: day.strftime(form) for form in sorted(formats)})
    return f"{{% macro strftime_now(form) %}}{{{{ {dates}[form] }}}}{{% endmacro %}}\n{template}"


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
