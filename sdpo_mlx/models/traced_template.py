"""Render a chat template and know, for every character, whether the template or a message wrote it.

The template runs unchanged in transformers' sandbox, on the true contents, so every test and cut that it makes on them
is the one of `apply_chat_template`. Only its own text is special: string constants and raw text are `TracedText`,
which keeps the origin of each character through concatenation, slices, `strip`, `split`, `replace` and case changes.
Any other operation forgets it, and what is forgotten counts as content: it never becomes a control token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from sdpo_mlx.types import Message

TEMPLATE, CONTENT = "t", "c"  # origin of a character
HIDDEN = "\0"  # stands for a character of a content where control tokens are searched
FIXED_DATE = "2024-07-26"  # the fallback of Llama 3's template; with today's date a resumed run would see other prompts

_RUNS = re.compile(f"{TEMPLATE}+|{CONTENT}+")
_CASES = ("lower", "upper", "title", "capitalize", "swapcase")


class TracedText(str):
    """A string with the origin of each character; without a second argument all of it counts as content."""

    _origin: str  # the sandbox hides names with an underscore from templates

    def __new__(cls, text: object = "", origin: str | None = None) -> TracedText:
        """Return the text; `origin` has one letter for each character."""
        made = super().__new__(cls, text)
        made._origin = CONTENT * len(made) if origin is None else origin
        return made

    def __str__(self) -> TracedText:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: Any) -> TracedText:
        return TracedText(super().__getitem__(key), self._origin[key])

    def lstrip(self, chars: str | None = None, /) -> TracedText:
        """As in `str`, with origins."""
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> TracedText:
        """As in `str`, with origins."""
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None, /) -> TracedText:
        """As in `str`, with origins."""
        return self.lstrip(chars).rstrip(chars)

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        """As in `str`, with origins."""
        return list(self._found(super().split(sep, maxsplit), len(sep or "")))

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        """As in `str`, with origins."""
        return list(self._found(super().rsplit(sep, maxsplit), len(sep or "")))

    def replace(self, old: str, new: str, count: Any = -1, /) -> str:
        """As in `str`, with origins."""
        return _interleaved(new, self.split(old, count)) if old else super().replace(old, new, count)

    def join(self, parts: Iterable[str], /) -> str:
        """As in `str`, with origins."""
        return _interleaved(self, parts)

    def _found(self, parts: Sequence[str], gap: int) -> Iterator[TracedText]:
        """Yield parts of this text again, with their origin; `gap` characters lie between two."""
        at = 0
        for part in parts:
            at = self.find(part, at)
            yield self[at : at + len(part)]
            at += len(part) + gap

    def runs(self) -> Iterator[tuple[bool, int, int]]:
        """Yield whether the template wrote a part, its start and its end."""
        for run in _RUNS.finditer(self._origin):
            yield self._origin[run.start()] == TEMPLATE, *run.span()


def _same_length(name: str) -> Callable[[TracedText], str]:
    change: Callable[[str], str] = getattr(str, name)

    def method(self: TracedText) -> str:
        changed = change(self)
        return TracedText(changed, self._origin) if len(changed) == len(self) else changed

    return method


for _name in _CASES:
    setattr(TracedText, _name, _same_length(_name))


def joined(parts: Iterable[str]) -> str:
    """Return the parts as one text, traced if the template wrote any of it."""
    parts = list(parts)
    origin = "".join([part._origin if isinstance(part, TracedText) else CONTENT * len(part) for part in parts])
    text = "".join(parts)
    return TracedText(text, origin) if TEMPLATE in origin else text


def _interleaved(separator: str, parts: Iterable[str]) -> str:
    return joined([piece for part in parts for piece in (separator, part)][1:])


@lru_cache(maxsize=4096)
def literal(text: str) -> TracedText:
    """Return a text as the template's own."""
    return TracedText(text, TEMPLATE * len(text))


class TracedTemplate:
    """A chat template, compiled so that its own text is traced. Raises jinja2.TemplateError for bad syntax."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        """`special_tokens` are the variables `bos_token`, `eos_token`, ... of the template."""
        # The one private name that is used: a copy of the environment would drift away from transformers'.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment = _compile_jinja_template("").environment.overlay(optimized=False)
        environment.code_generator_class = _TracingGenerator
        environment.concat = joined
        environment.literal = literal
        environment.globals = {**environment.globals, "strftime_now": _strftime_fixed}
        self._template = environment.from_string(source)
        self._special_tokens = _own(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any] | Message], **variables: Any) -> TracedText:
        """Return the text; roles and special tokens are the template's, contents and variables are not.

        Raises whatever the template raises.
        """
        own = [{**message, "role": literal(message["role"])} for message in messages]
        text = self._template.render(messages=own, documents=None, **{**self._special_tokens, **variables})
        return text if isinstance(text, TracedText) else TracedText(text)


def hidden(text: TracedText) -> str:
    """Return the text with HIDDEN for contents, except whitespace at their borders, which a token's flags may strip."""
    pieces = []
    for own, start, end in text.runs():
        piece = str.__getitem__(text, slice(start, end))
        if not own and (inner := piece.strip()):
            before, _, after = piece.partition(inner)
            piece = before + HIDDEN * len(inner) + after
        pieces.append(piece)
    return "".join(pieces)


class _TracingGenerator(CodeGenerator):
    """Compiles string constants and raw text to traced text, and `~` to a concatenation that keeps the origin."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({super()._output_const_repr(group)})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.literal({str(node.value)!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


@lru_cache
def _strftime_fixed(form: str) -> str:
    return date.fromisoformat(FIXED_DATE).strftime(form)


def _own(value: Any) -> Any:
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Mapping):
        return {name: _own(item) for name, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, list | tuple) else value
