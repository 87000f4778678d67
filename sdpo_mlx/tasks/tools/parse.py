"""Tool calls in a model's answer: `Action:` lines with JSON inputs, or the JSON forms of chat templates.

Everything is read in the order of the answer; what cannot be read stays in its place as a call with a fault.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdpo_mlx.core.text import strip_thinking

Form = Literal["actions", "json"]
MOST_CALLS = 50
_SNIPPET = 30  # characters of the answer shown where its JSON breaks

_LABEL = re.compile(r"^[ \t>*_`]*(?:ASSISTANT )?(Action Input|Action)[*_`]*[ \t]*:[ \t*_]*", re.MULTILINE)
_NAME = re.compile(r"[\"'`]*([\w./-]+)")
_OPENING = re.compile(r"\s*(?:```(?:json)?\s*)?")
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*$", re.MULTILINE)
_NEXT = re.compile(r"\s*[;,]?\s*(?=[{\[])")
_LINE = re.compile(r"^[ \t]*(?=\{|\[\s*\{)", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """One call as it is written; `fault` says in a sentence why it cannot be read, blank if it can."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def read_calls(text: str, form: Form) -> tuple[Call, ...]:
    """Return the calls of an answer in one form, its thinking left out; more than 50 end in a fault."""
    answer = strip_thinking(text)
    found: list[Call] = []
    for call in _actions(answer) if form == "actions" else _json_calls(answer):
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
        value, fault, position = _value_at(text, label.end())
        fault = "an Action Input has no Action before it" if pending is None else fault
        yield _checked(pending or "", value, fault)
        pending = None
    if pending is not None:
        yield Call(pending, fault="its Action Input is missing")


def _json_calls(text: str) -> Iterator[Call]:
    """Yield calls inside tags where there are any, otherwise those that open a line; alone, in a list, or in a row."""
    if "<tool_call>" in text:
        for chunk in _TAGGED.finditer(text):
            yield from _calls_at(chunk[1], 0)[0]
        return
    text = _FENCE.sub("", text.replace("<|python_tag|>", "\n"))
    position = 0
    while start := _LINE.search(text, position):
        calls, position = _calls_at(text, start.end())
        yield from calls


def _calls_at(text: str, start: int) -> tuple[list[Call], int]:
    """Return the calls of the JSON values in a row from `start`, and where they end."""
    calls: list[Call] = []
    while True:
        value, fault, position = _value_at(text, start)
        if fault:
            return [*calls, Call("", fault=fault)], position
        calls += map(call_from, value if isinstance(value, list) else [value])
        more = _NEXT.match(text, position)
        if more is None:
            return calls, position
        start = more.end()


def call_from(value: Any) -> Call:
    """Return a call from its JSON: `name` with `arguments` or `parameters`, bare or inside `function`."""
    if not isinstance(value, dict):
        return Call("", fault="it is no JSON object with a name and arguments")
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    name = inner.get("name", inner.get("function"))
    arguments: Any = next((inner[key] for key in ("arguments", "parameters") if key in inner), {})
    if not isinstance(name, str) or not name.strip():
        return Call("", fault="it has no name")
    fault = ""
    if isinstance(arguments, str):
        arguments, fault, _ = _value_at(arguments, 0)
    return _checked(name.strip(), arguments, fault)


def _checked(name: str, arguments: Any, fault: str) -> Call:
    if fault:
        return Call(name, fault=fault)
    if not isinstance(arguments, dict):
        return Call(name, fault=f"its arguments are no JSON object but {kind(arguments)}")
    return Call(name, arguments) if name else Call("", fault="it has no name")


def _value_at(text: str, start: int) -> tuple[Any, str, int]:
    """Return the JSON value after whitespace and a fence, what is wrong with it (blank if nothing), and its end."""
    opening = _OPENING.match(text, start)
    begin = opening.end() if opening else start
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        near = json.dumps(text[max(begin, error.pos - _SNIPPET // 2) : error.pos + _SNIPPET // 2], ensure_ascii=False)
        place = f"character {error.pos - begin + 1}, near {near}" if error.pos < len(text) else "its end"
        return None, f"its JSON is malformed at {place}: {error.msg[:1].lower()}{error.msg[1:]}", error.pos + 1
    except RecursionError:
        return None, "its JSON is nested too deep", len(text)
    except ValueError as error:  # ours below, and numbers with too many digits
        reason = str(error) if isinstance(error, _UnusableError) else "a number has too many digits"
        return None, f"its JSON cannot be used: {reason}", len(text)
    return value, "", end


class _UnusableError(ValueError):
    """JSON that parses but is ambiguous or not finite; the message explains it."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _UnusableError("an argument stands twice")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _UnusableError(f"{text[:_SNIPPET]} is no finite number")
    return number


def kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    words = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return words.get(type(value), "null")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite)
