"""One tool call, and JSON values of which it can be said what is wrong with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]  # JSON schema of each tool's arguments, by its name

_SNIPPET = 30  # characters of the answer shown where its JSON breaks
_OPENING = re.compile(r"\s*(?:```(?:json)?\s*)?")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True)
class Call:
    """One call as it is written; `fault` says in a sentence why it cannot be read, blank if it can."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


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
    if isinstance(arguments, str) and arguments.strip():
        arguments, fault, _ = value_at(arguments, 0)
    return checked(name.strip(), arguments, fault)


def checked(name: str, arguments: Any, fault: str) -> Call:
    """Return a call, with a fault if there is one, or if the arguments are no object; null and "" are none at all."""
    if fault:
        return Call(name, fault=fault)
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if not isinstance(arguments, dict):
        return Call(name, fault=f"its arguments are no JSON object but {kind(arguments)}")
    return Call(name, arguments) if name else Call("", fault="it has no name")


def typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """Return the value that a text without quotes stands for, by the JSON schema of its argument.

    It stays a text if there is no schema, or if no other type that the schema allows fits.
    """
    types = types_of(schema)
    if schema is None or types == {"string"}:
        return text
    word = text.strip()
    if word.lower() in _WORDS:
        value: Any = _WORDS[word.lower()]
    else:
        value, fault, end = value_at(word, 0)
        if fault or end != len(word):
            return text
    wanted = {"null": "null", "boolean": "true or false", "integer": "a number", "number": "a number"}
    wanted |= {"array": "a list", "object": "an object"}
    fits = value is None and "string" not in types
    return value if fits or not types or kind(value) in {wanted.get(name, "") for name in types} else text


def types_of(schema: Mapping[str, Any] | None) -> set[str]:
    """Return the names of the types that a schema allows; empty for any."""
    if not isinstance(schema, Mapping):
        return set()
    found = schema.get("type", [])
    types = {str(name) for name in (found if isinstance(found, list) else [found])}
    parts = [part for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for part in schema[key]]
    return types.union(*map(types_of, parts)) or _enum_types(schema.get("enum"))


def _enum_types(choices: Any) -> set[str]:
    names = {"true or false": "boolean", "a number": "number", "text": "string", "a list": "array"}
    names |= {"an object": "object", "null": "null"}
    return {names[kind(choice)] for choice in choices} if isinstance(choices, list) else set()


def value_at(text: str, start: int) -> tuple[Any, str, int]:
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
