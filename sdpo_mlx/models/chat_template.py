"""Messages to token ids and back, with every content kept inert.

The model's chat template is rendered with a stand-in character for each content (a *frame*). The frame is
cut at the tokenizer's control tokens, the contents are put into the plain pieces between them, and each
piece is encoded by a copy of the tokenizer that cannot produce a control token. So `<|im_end|>` in feedback
stays plain text whatever the template is, while the pieces merge across the border of frame and content
exactly as in training: for contents without control tokens the ids equal `apply_chat_template`'s.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.text import well_formed
from sdpo_mlx.models.tokenizer import auto_tokenizer
from sdpo_mlx.models.tool_schemas import check_shown, guard
from sdpo_mlx.types import IntArray, Message

Shape = tuple[str, str, bool, str]  # role, leading whitespace, whether anything follows it, trailing whitespace
Frame = tuple[int | str, ...]  # control ids, and plain text with stand-ins
Tools = Sequence[Mapping[str, Any]]  # JSON schemas, as chat templates take them

STAND_IN = 0xF0000  # plane 15, private use: content i is chr(STAND_IN + i); no template writes these
FRAMES_KEPT = 4096
FIXED_DATE = "2024-07-26"  # templates that ask for today's date get Llama 3's own fallback: prompts never drift

_STAND_INS = re.compile(f"[{chr(STAND_IN)}-{chr(STAND_IN + 0xFFFD)}]")
_DATE_FORMATS = re.compile(r"""strftime_now\(\s*(?:"([^"]+)"|'([^']+)')""")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer taken apart: the control tokens, and two encoders that cannot produce them.

    `first` encodes a text that opens a prompt, `later` one after a control token; they differ only where
    the tokenizer prefixes a space at the very start.
    """

    controls: dict[str, int]
    pattern: re.Pattern[str] | None
    control_ids: frozenset[int]
    first: Any
    later: Any

    def split(self, text: str) -> Frame:
        """The text cut at its control tokens, which become ids; the whitespace that they swallow is gone."""
        if self.pattern is None:
            return (text,) if text else ()
        pieces: list[int | str] = []
        position = 0
        for match in self.pattern.finditer(text):
            pieces += [text[position : match.start()], self._id(match[0])]
            position = match.end()
        return tuple(piece for piece in (*pieces, text[position:]) if piece != "")

    def _id(self, found: str) -> int:
        return self.controls[found] if found in self.controls else self.controls[found.strip()]


class Chat:
    """The tokenizer of one model, as the loop needs it; made by `load_chat`."""

    def __init__(
        self, tokenizer: Any, templates: tuple[str, str], thinking: bool, fingerprint: str, eos: frozenset[int]
    ) -> None:
        self.thinking = thinking
        self.tokenizer_hash = fingerprint
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._template, self._tool_template = map(_with_fixed_date, templates)
        self._vocabulary = take_apart(self._backend.to_str())
        self._guard = guard(self._vocabulary.controls)
        self._frames: dict[tuple[tuple[Shape, ...], bool, str], Frame] = {}
        self.control_ids = self._vocabulary.control_ids
        self.eos_ids = eos | self._end_of_turn()

    def render(self, messages: Sequence[Message], *, tools: Tools = (), generation_prompt: bool = True) -> IntArray:
        """The prompt's ids (T,), with the opening of the assistant's turn unless told otherwise.

        `tools` go to the template's own variable of that name. Raises ConfigError where the template refuses
        the roles, drops a message, or has no place for tools.
        """
        marked = json.dumps(self._guard.mark(tools)) if tools else ""
        contents = [well_formed(message["content"]) for message in messages]
        shapes = tuple(_shape(m["role"], content) for m, content in zip(messages, contents, strict=True))
        bodies = [content.strip() for content in contents]
        ids: list[int] = []
        for position, piece in enumerate(self._frame(shapes, generation_prompt, marked)):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            text = _STAND_INS.sub(lambda found: bodies[ord(found[0]) - STAND_IN], piece)
            ids += self._encode(text, opens=position == 0)
        return np.array(ids, dtype=np.int32)

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in the middle of a prompt; never a control id."""
        return self._encode(well_formed(text), opens=False)

    def decode(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids without special tokens; broken UTF-8 becomes U+FFFD, unknown ids nothing."""
        return str(self._backend.decode([int(i) for i in ids if int(i) not in self.eos_ids], skip_special_tokens=True))

    def reveal(self, ids: Sequence[int] | IntArray) -> str:
        """The text of ids with every special token written out: to look at, never to encode again."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def _encode(self, text: str, *, opens: bool) -> list[int]:
        encoder = self._vocabulary.first if opens else self._vocabulary.later
        return list(encoder.encode(text, add_special_tokens=False).ids)

    def _frame(self, shapes: tuple[Shape, ...], generation_prompt: bool, tools: str = "") -> Frame:
        """The frame of these shapes and these marked tools (JSON, blank for none)."""
        key = (shapes, generation_prompt, tools)
        if key not in self._frames:
            if len(self._frames) >= FRAMES_KEPT:
                self._frames.clear()
            text = self._frame_text(shapes, generation_prompt, json.loads(tools) if tools else None)
            pieces = self._vocabulary.split(text)
            self._frames[key] = tuple(p if isinstance(p, int) else self._guard.unmark(p) for p in pieces)
        return self._frames[key]

    def _frame_text(self, shapes: tuple[Shape, ...], generation_prompt: bool, tools: list[Any] | None) -> str:
        marked = _marked(shapes)
        try:
            text = self._apply(marked, generation_prompt, tools)
        except ConfigError:
            folded = _fold_system(marked)
            if folded == marked:
                raise
            marked, text = folded, self._apply(folded, generation_prompt, tools)
        if tools:
            check_shown(text, self._apply(marked, generation_prompt, None))
        return text

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
        except Exception as error:  # a template may raise anything, and what it raises is about the roles
            fix = "use roles that this model knows, in turns of user and assistant"
            raise ConfigError(f"the chat template refuses the messages: {error}", fix=fix) from error
        for message in marked:
            if any(stand_in not in text for stand_in in _STAND_INS.findall(message["content"])):
                raise ConfigError(f"the chat template drops a {message['role']} message", fix="leave that message out")
        return str(text)

    def _end_of_turn(self) -> frozenset[int]:
        """The control token that follows an assistant's content, as the template itself writes it."""
        try:
            frame = self._frame((("user", "", True, ""), ("assistant", "", True, "")), False)
        except ConfigError:
            return frozenset()
        places = [i for i, piece in enumerate(frame) if isinstance(piece, str) and chr(STAND_IN + 1) in piece]
        after = [piece for piece in frame[places[-1] :] if isinstance(piece, int)]
        return frozenset(after[:1])


def load_chat(path: str | Path, *, thinking: bool = False) -> Chat:
    """The chat of the model in a folder; nothing is fetched and no code of the folder is run.

    `thinking` is handed to the template (Qwen3's `enable_thinking`). Raises ConfigError where the folder has
    no tokenizer that can be read, or no chat template.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError("no model folder here", where=str(path), fix="give the folder that holds tokenizer.json")
    try:
        tokenizer: Any = auto_tokenizer().from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # whatever a damaged or exotic folder makes the loader raise
        what = f"the tokenizer cannot be read: {' '.join(str(error).split())[:200]}"
        raise ConfigError(what, where=str(path), fix="use a model that has a tokenizer.json") from error
    templates = _templates_of(tokenizer, str(path))
    fingerprint = _fingerprint(folder, backend, templates)
    return Chat(tokenizer, templates, thinking, fingerprint, _configured_eos(folder, tokenizer))


def take_apart(serialized: str) -> Vocabulary:
    """Split a tokenizer's JSON into control tokens and encoders that cannot produce them.

    All added tokens are control tokens, but runs of whitespace (Gemma, NeoX), which are text like any other.
    In the encoders each control token is renamed, in vocabulary and merges, to a name nobody can write.
    """
    spec = json.loads(serialized)
    added = [token for token in spec["added_tokens"] if token["special"] or token["content"].strip(" \t\r\n\u2581")]
    names = {token["content"]: f"{secrets.token_hex(16)}-{token['id']}" for token in added}
    unknown = spec["model"].get("unk_token")
    spec.update(post_processor=None, truncation=None, padding=None, model=_renamed_model(spec["model"], names))
    spec["added_tokens"] = [_renamed_token(token, names) for token in spec["added_tokens"]]
    controls = {token["content"]: int(token["id"]) for token in added}
    ids = frozenset(i for content, i in controls.items() if content != unknown)
    later = _never_prefixed(spec)
    first = _encoder(spec)
    return Vocabulary(controls, _pattern(added), ids, first, first if later == spec else _encoder(later))


def _encoder(spec: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(spec))


def _renamed_token(token: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    if token["content"] not in names:
        return token
    inert = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    return {**token, **inert, "content": names[token["content"]]}


def _renamed_model(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The model with renamed entries: ids stay, and no merge leads to a control token any more."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        renamed: Any = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    else:
        renamed = [[names.get(piece, piece), score] for piece, score in vocabulary]
    model = {**model, "vocab": renamed}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, names)]
    return model


def _touches(merge: str | list[str], names: dict[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _never_prefixed(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer for a piece that is not the first of its prompt."""
    spec = {**spec, "pre_tokenizer": copy.deepcopy(spec["pre_tokenizer"])}
    parts = spec["pre_tokenizer"] or {}
    for part in parts.get("pretokenizers", [parts]):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return spec


def _pattern(added: list[dict[str, Any]]) -> re.Pattern[str] | None:
    """Matches a control token, the longest first, with the whitespace that its flags let it swallow."""
    longest_first = sorted(added, key=lambda token: -len(token["content"]))
    return re.compile("|".join(map(_one_control, longest_first))) if added else None


def _one_control(token: dict[str, Any]) -> str:
    core = re.escape(str(token["content"]))
    if token["single_word"]:
        core = rf"(?<!\w){core}(?!\w)"
    left, right = (r"\s*" if token[side] else "" for side in ("lstrip", "rstrip"))
    return left + core + right


def _shape(role: str, content: str) -> Shape:
    body = content.strip()
    if not body:
        return role, content, False, ""
    start = content.index(body)
    return role, content[:start], True, content[start + len(body) :]


def _marked(shapes: Sequence[Shape]) -> list[dict[str, str]]:
    """Messages with a stand-in for each body; outer whitespace stays, since many templates trim it."""
    return [
        {"role": role, "content": before + (chr(STAND_IN + i) if body else "") + after}
        for i, (role, before, body, after) in enumerate(shapes)
    ]


def _fold_system(marked: list[dict[str, str]]) -> list[dict[str, str]]:
    """The first user message opened by the system message, for templates without a system role."""
    if len(marked) < 2 or (marked[0]["role"], marked[1]["role"]) != ("system", "user"):
        return marked
    return [{"role": "user", "content": f"{marked[0]['content']}\n\n{marked[1]['content']}"}, *marked[2:]]


def _with_fixed_date(template: str) -> str:
    """The template with its clock stopped: a macro hides `strftime_now`, so that a resumed run sees equal prompts."""
    if "strftime_now" not in template:
        return template
    from datetime import date

    day = date.fromisoformat(FIXED_DATE)
    formats = {double or single for double, single in _DATE_FORMATS.findall(template)}
    dates = json.dumps({form: day.strftime(form) for form in sorted(formats)})
    return f"{{% macro strftime_now(form) %}}{{{{ {dates}[form] }}}}{{% endmacro %}}\n{template}"


def _templates_of(tokenizer: Any, where: str) -> tuple[str, str]:
    """The template, and the one for prompts with tools: few models have another one for these."""
    try:
        return str(tokenizer.get_chat_template()), str(tokenizer.get_chat_template(tools=[{}]))
    except Exception as error:  # transformers raises ValueError for none and for several without a default
        fix = "use the instruct version of the model, or put a chat_template.jinja into its folder"
        raise ConfigError("the model has no chat template", where=where, fix=fix) from error


def _fingerprint(folder: Path, backend: Any, templates: tuple[str, str]) -> str:
    """SHA-256 over what decides the ids: the tokenizer's file and the templates."""
    file = folder / "tokenizer.json"
    source = file.read_bytes() if file.is_file() else backend.to_str().encode()
    return hashlib.sha256(hashlib.sha256(source).digest() + "".join(dict.fromkeys(templates)).encode()).hexdigest()


def _configured_eos(folder: Path, tokenizer: Any) -> frozenset[int]:
    """All ids that the tokenizer, generation_config.json and config.json call an end."""
    found = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for section in (config, config.get("text_config") or {}):
            ids = section.get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
    return frozenset(int(i) for i in found if i is not None)
