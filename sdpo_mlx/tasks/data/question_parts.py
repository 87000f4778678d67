"""Fields that carry a part of the question beside its main one: a story, a passage, a table, options, a picture.

SVAMP and ASDiv tell the story in `Body`, reading comprehension has a `context` or `passage`, TabMWP a `table`, Alpaca's
rows an `input`. No field of these lists is dropped without a word: texts are put before the question (`input` after
it), and a row with a part that cannot be shown is refused. Names are compared without case and plural; a part that is
missing, null or empty, or that stands in the question already, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.types import Message

BEFORE = (
    "body",
    "context",
    "ctx",
    "passage",
    "story",
    "article",
    "paragraph",
    "excerpt",
    "background",
    "scenario",
    "premise",
    "situation",
    "stimulus",
    "narrative",
    "dialogue",
    "document",
    "table_title",
    "table",
)
AFTER = ("input",)
OPTIONS = ("options", "choices", "answer_choices", "answer_options")
_LETTERS = {"A", "B"}  # C-Eval's and CMMLU's fields of options
_AFFIXES = re.compile(r"^(?:question|problem)_|_text$")
_PICTURE = re.compile(r"(?:decoded_)?(?:image|picture|figure|diagram)s?(?:_?\d+)?")


@dataclass(frozen=True)
class Part:
    """One such field: its name in the row, whether its text stands after the question, and the text."""

    name: str
    after: bool
    text: str


def whole_question(row: Mapping[str, Any], question: str, where: str, own: Sequence[str] = ()) -> str:
    """Return the question with all its parts, each a paragraph; `own` are fields that the layout reads by itself.

    Raises DataError for a part that is no text.
    """
    parts = [part for part in _parts(row, question, where, own) if part.text not in question]
    before, after = ([part.text for part in parts if part.after is flag] for flag in (False, True))
    return "\n\n".join([*before, question.strip(), *after])


def whole_chat(row: Mapping[str, Any], messages: Sequence[Message], where: str) -> tuple[Message, ...]:
    """Return the messages, the last one of the user with the parts of the question that no message holds."""
    said = "\n\n".join(message["content"] for message in messages)
    parts = {part.name: part.text for part in _parts(row, said, where) if part.text not in said}
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None or not parts:
        return tuple(messages)
    content = whole_question({name: row[name] for name in parts}, messages[last]["content"], where)
    return (*messages[:last], Message(role="user", content=content), *messages[last + 1 :])


def refuse_parts(row: Mapping[str, Any], messages: Sequence[Message], where: str) -> None:
    """Raise DataError for a part of the question that the messages do not hold, in a layout that reads none."""
    said = "\n\n".join(message["content"] for message in messages)
    for part in _parts(row, said, where):
        if part.text not in said:
            what = f"{part.name} carries a part of the question, and this layout does not read it"
            raise DataError(what, where=where, fix="write it into the question, and take the field out")


def _parts(row: Mapping[str, Any], said: str, where: str, own: Sequence[str] = ()) -> Iterator[Part]:
    """Yield the row's parts that are not empty, in its order; raises DataError for options, pictures and no texts."""
    for name, value in row.items():
        kind = _kind(name)
        if name in own or value in (None, "", [], {}):
            continue
        if kind in OPTIONS or (name in _LETTERS and row.keys() >= _LETTERS):
            texts = _texts(value)
            if not texts or not all(text in said for text in texts):
                fix = "use --task science, or write them into the question and take the field out"
                raise DataError(f"{name} holds options, which this task does not show", where=where, fix=fix)
        elif _PICTURE.fullmatch(kind):
            fix = "leave out rows whose question has one"
            raise DataError(f"{name} holds a picture, which no task shows", where=where, fix=fix)
        elif kind in (*BEFORE, *AFTER):
            texts = _texts(value)
            if not texts:
                what = f"{name} carries a part of the question, but is neither text nor a list of texts"
                raise DataError(what, where=where, fix="write it as text")
            yield from [Part(name, kind in AFTER, text)] if (text := "\n".join(texts).strip()) else []


def _kind(name: str) -> str:
    """Return a field's name as it stands in the lists: `question_context` is a context, `passages` are a passage."""
    plain = _AFFIXES.sub("", name.casefold())
    return plain.removesuffix("s") if plain.removesuffix("s") in BEFORE else plain


def _texts(value: Any) -> list[str]:
    """Return a text, or the texts of a list; [] for anything else."""
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values)
    return [str(each) for each in values] if plain else []
