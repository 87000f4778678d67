"""Tool calls in a model's answer: `Action:` lines with JSON inputs, or the notation of the model's chat template.

Everything is read in the order of the answer; what cannot be read stays in its place as a call with a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from sdpo_mlx.core.text import strip_thinking
from sdpo_mlx.tasks.tools.notations import calls_in
from sdpo_mlx.tasks.tools.values import Call, Schemas, checked, value_at

Form = Literal["actions", "json"]
MOST_CALLS = 50

_LABEL = re.compile(r"^[ \t>*_`]*(?:ASSISTANT )?(Action Input|Action)[*_`]*[ \t]*:[ \t*_]*", re.MULTILINE)
_NAME = re.compile(r"[\"'`]*([\w./-]+)")


def read_calls(text: str, form: Form, schemas: Schemas | None = None) -> tuple[Call, ...]:
    """Return the calls of an answer in one form, its thinking left out; more than 50 end in a fault.

    `schemas` give their types to arguments that are written without quotes.
    """
    answer = strip_thinking(text)
    found: list[Call] = []
    for call in _actions(answer) if form == "actions" else calls_in(answer, schemas or {}):
        if len(found) == MOST_CALLS:
            return (*found, Call("", fault=f"there are more than {MOST_CALLS} calls"))
        found.append(call)
    return tuple(found)


def _actions(text: str) -> Iterator[Call]:
    """Yield calls of two lines; a label inside a JSON input is none."""
    pending: str | None = None
    position = 0
    for label in _LABEL.finditer(text):
        if label.start() < position:
            continue
        if label[1] == "Action":
            if pending is not None:
                yield Call(pending, fault="its Action Input is missing")
            name = _NAME.match(text, label.end())
            pending = name[1] if name else ""
            continue
        value, fault, position = value_at(text, label.end())
        fault = "an Action Input has no Action before it" if pending is None else fault
        yield checked(pending or "", value, fault)
        pending = None
    if pending is not None:
        yield Call(pending, fault="its Action Input is missing")
