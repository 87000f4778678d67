"""Compare tool calls with the expected ones, call by call and argument by argument, and describe differences.

Two JSON values are equal when they have the same type and say the same: numbers by value (1 is 1.0), true
is not 1, "1" is not 1, texts character by character (NFC), lists in order, objects in any order. An argument
left out counts as its schema's default; null counts as left out where the argument is optional.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sdpo_mlx.tasks.tools.values import Call, kind

FEEDBACK_MODES = ("public", "full", "error_only", "none")
_SHOWN, _WHOLE = 80, 400  # characters of a value or a name; of a whole call
_LINES = 24  # calls that are spoken about
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_ARTICLES = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_ARTICLES |= {"array": "a list", "object": "an object", "null": "null"}


@dataclass(frozen=True)
class Case:
    """What is expected, and the JSON schema of each tool's arguments (none where the rows have no schemas)."""

    expected: tuple[Call, ...]
    schemas: Mapping[str, Mapping[str, Any]]
    ordered: bool = False


def same(left: Any, right: Any) -> bool:
    """Return whether two JSON values are equal by the rules above."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if isinstance(left, str) and isinstance(right, str):
        return unicodedata.normalize("NFC", left) == unicodedata.normalize("NFC", right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left is None and right is None


def all_right(calls: Sequence[Call], case: Case) -> bool:
    """Return whether these are the expected calls: the same multiset, and in the same order if the case requires it."""
    partners = _pairs(calls, case)
    exact = [j is not None and not _differences(calls[i], case.expected[j], case) for i, j in enumerate(partners)]
    if len(calls) != len(case.expected) or not all(exact):
        return False
    return not case.ordered or partners == sorted(partners, key=lambda j: -1 if j is None else j)


def merged_right(calls: Sequence[Call], case: Case) -> bool:
    """Return the paper's rule: the same multiset of names, and equal inputs once all are merged into one object."""
    if any(call.fault for call in calls) or Counter(c.name for c in calls) != Counter(c.name for c in case.expected):
        return False
    merged = [{k: v for call in side for k, v in call.arguments.items()} for side in (calls, case.expected)]
    return same(*merged)


def report(calls: Sequence[Call], case: Case, mode: str) -> str:
    """Describe every call, and those that are missing; expected values only in the mode `full`."""
    partners = _pairs(calls, case)
    lines = []
    for i, (call, j) in enumerate(zip(calls, partners, strict=True)):
        if mode != "error_only" or call.fault or _violations(call, case):
            label = f"Call {i + 1}, {_named(call.name)}" if call.name else f"Call {i + 1}"
            target = None if j is None else case.expected[j]
            lines.append(_sentence(f"{label}: {_of_call(call, target, case, mode)}"))
    more = [f"{len(lines) - _LINES} more calls are not spoken about."] if len(lines) > _LINES else []
    lines = lines[:_LINES] + more
    if mode == "error_only":
        return "\n".join(lines) or "The calls are well formed, but they are not the ones that the request needs."
    return "\n".join(lines + _of_case(partners, case, mode))


def _pairs(calls: Sequence[Call], case: Case) -> list[int | None]:
    """For each call the place of the expected call that it stands for: same name, fewest differences first."""
    candidates = sorted(
        (len(_differences(call, target, case)), i, j)
        for i, call in enumerate(calls)
        for j, target in enumerate(case.expected)
        if call.name == target.name
    )
    partners: list[int | None] = [None] * len(calls)
    taken: set[int] = set()
    for _, i, j in candidates:
        if partners[i] is None and j not in taken:
            partners[i] = j
            taken.add(j)
    return partners


def _differences(call: Call, target: Call, case: Case) -> list[str]:
    """Return the arguments in which a call is not the wanted one; a fault is a difference in all of them."""
    if call.fault:
        return [*target.arguments, ""]
    schema = case.schemas.get(call.name, {})
    ours, theirs = _complete(call.arguments, schema), _complete(target.arguments, schema)
    return [name for name in {**theirs, **ours} if not _agree(name, ours, theirs)]


def _agree(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return name in ours and name in theirs and same(ours[name], theirs[name])


def _complete(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with defaults for what is left out, and without optional ones that are null."""
    required = schema.get("required", ())
    given = {name: value for name, value in arguments.items() if value is not None or name in required}
    defaults = {n: p["default"] for n, p in schema.get("properties", {}).items() if p.get("default") is not None}
    return {**defaults, **given}


def _violations(call: Call, case: Case) -> dict[str, str]:
    """Return what the tool itself would refuse: by argument, `` for the call as a whole."""
    if not case.schemas:
        return {}
    if call.name not in case.schemas:
        near = get_close_matches(call.name, case.schemas, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the tools are {', '.join(case.schemas)}"
        return {"": f"there is no such tool; {hint.rstrip('?')}"}
    schema = case.schemas[call.name]
    properties = schema.get("properties", {})
    given = {n: v for n, v in call.arguments.items() if v is not None or n in schema.get("required", ())}
    found = {n: f"the required argument {n} is missing" for n in schema.get("required", ()) if n not in given}
    for name, value in given.items():
        wrong = _refused(name, value, properties)
        if wrong:
            found[name] = wrong
    return found


def _refused(name: str, value: Any, properties: Mapping[str, Any]) -> str:
    """Return why a schema refuses one argument; blank if it doesn't."""
    shown = _named(name)
    if name not in properties:
        near = get_close_matches(name, properties, n=1)
        return f"the tool has no argument {shown}" + (f" (did you mean {near[0]}?)" if near else "")
    target = properties[name].get("type")
    types = target if isinstance(target, list) else [target]
    if all(t in _TYPES for t in types) and not any(_fits(value, t) for t in types):
        given = f"the number {_value(value)}" if kind(value) == "a number" else kind(value)
        return f"{shown} must be {' or '.join(_ARTICLES[t] for t in types)}, not {given}"
    choices = properties[name].get("enum")
    if choices and not any(same(value, choice) for choice in choices):
        return f"{shown} must be one of {', '.join(map(_value, choices))}, not {_value(value)}"
    return ""


def _fits(value: Any, target: str) -> bool:
    if isinstance(value, bool):
        return target == "boolean"
    whole = not isinstance(value, float) or value.is_integer()
    return isinstance(value, _TYPES[target]) and (target != "integer" or whole)


def _of_call(call: Call, target: Call | None, case: Case, mode: str) -> str:
    """One call in words: what its tool refuses, then what is right, wrong, missing or not needed."""
    if call.fault:
        return call.fault
    refused = _violations(call, case)
    if "" in refused:
        return refused[""]
    if target is None:
        surplus = any(call.name == expected.name for expected in case.expected)
        verdict = "this call is one too many" if surplus else "this tool is not needed here"
        return "; ".join([verdict, *refused.values()])
    if mode == "error_only":
        return "; ".join(refused.values())
    schema = case.schemas.get(call.name, {})
    ours, theirs = _complete(call.arguments, schema), _complete(target.arguments, schema)
    if not _differences(call, target, case):
        return "right"
    names = [*call.arguments, *(name for name in [*refused, *theirs] if name not in call.arguments)]
    line = [_of_argument(name, call, (ours, theirs), refused.get(name, ""), mode) for name in dict.fromkeys(names)]
    return "; ".join(part for part in line if part)


def _of_argument(
    name: str, call: Call, sides: tuple[Mapping[str, Any], Mapping[str, Any]], refused: str, mode: str
) -> str:
    ours, theirs = sides
    left_out = "" if name in call.arguments else ", which is its default"
    expected = f", expected {_value(theirs[name])}" if mode == "full" and name in theirs else ""
    if refused:
        return refused + expected
    if _agree(name, ours, theirs):
        return "" if left_out else f"{_named(name)} is right"
    if name not in ours:
        return f"the argument {_named(name)} is missing{expected}" if name in theirs else ""
    if name not in theirs:
        return f"{_named(name)} is not needed here"
    return f"{_named(name)} has the wrong value {_value(ours[name])}{left_out}{expected}"


def _of_case(partners: Sequence[int | None], case: Case, mode: str) -> list[str]:
    """What is wrong with the calls as a whole: those that are missing, and their order."""
    lines = []
    if missing := [call for j, call in enumerate(case.expected) if j not in partners]:
        count = "A call is missing" if len(missing) == 1 else f"{len(missing)} calls are missing"
        shown = "; ".join(f"{call.name} {_value(call.arguments, _WHOLE)}" for call in missing)
        needed = "1 call" if len(case.expected) == 1 else f"{len(case.expected)} calls"
        request = f"{count}: the request needs {needed}."
        lines.append(_sentence(f"{count}: {shown}") if mode == "full" else request)
    places = [j for j in partners if j is not None]
    if case.ordered and places != sorted(places):
        order = f" They belong in the order {', '.join(call.name for call in case.expected)}." if mode == "full" else ""
        lines.append(f"The calls stand in the wrong order.{order}")
    return lines


def _named(name: str) -> str:
    """Return a name as it is where it is a plain one, otherwise quoted."""
    return name if name.replace("_", "").isalnum() and len(name) <= _SHOWN else _value(name)


def _value(value: Any, limit: int = _SHOWN) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _sentence(text: str) -> str:
    return text if text.endswith("...") else f"{text}."
