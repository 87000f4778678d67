"""JSON in a free answer, and JSON Schema that neither fetches anything nor hangs.

The author writes the schema, the model the document: patterns run under a time limit, documents are read to a
limited depth, and `$ref` goes nowhere but into the schema itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import regex

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.markdown import code_blocks
from sdpo_mlx.core.text import shorten_middle

SECONDS = 1.0  # processor time for one search; ordinary patterns need well under a millisecond
DEEPEST = 64
_SHOWN = 3  # faults of one document that are named
_QUOTED = 120


class NotJsonError(ValueError):
    """The answer holds no JSON; the message says why."""


def searched(pattern: str, text: str) -> bool:
    """Return whether the pattern is found in the text.

    Raises RuntimeError if the search is given up: that is the pattern's fault, and no grade on the answer.
    """
    try:
        return regex.search(pattern, text, timeout=SECONDS) is not None
    except TimeoutError:
        what = f"the pattern {pattern[:60]!r} needs more than {SECONDS:g} s on this answer"
        raise RuntimeError(f"{what}; it backtracks without end, write it without nested repeats") from None


def json_in(text: str) -> Any:
    """Return the document that is the whole answer, or stands in its last fenced block. Raises NotJsonError."""
    block = _last_fenced(text)
    try:
        value = json.loads((text if block is None else block).strip(), parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise NotJsonError(f"it is nested deeper than {DEEPEST} levels") from None
    except NotJsonError:
        raise
    except ValueError:
        raise NotJsonError("a number has too many digits") from None
    if _deeper(value, DEEPEST):
        raise NotJsonError(f"it is nested deeper than {DEEPEST} levels")
    return value


def _last_fenced(text: str) -> str | None:
    """Return the last complete block between fences that is marked as json or not at all; None if there is none."""
    found = [block.text for block in code_blocks(text) if block.closed and block.language in ("", "json")]
    return found[-1] if found else None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJsonError(f"{text[:20]} is not a number that JSON knows")
    return number


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(part, levels - 1) for part in parts)


# ---- schemas


def check_schema(schema: Any) -> str:
    """Return what is wrong with a schema, "" if nothing is. Raises ConfigError if the extra `rubric` is missing."""
    jsonschema = _library()
    if not isinstance(schema, dict):
        return "a JSON schema is an object"
    if _deeper(schema, DEEPEST):
        return f"the schema is nested deeper than {DEEPEST} levels"
    try:
        validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        # Without formats: its notion of a pattern is `re`'s, ours is `regex`'s.
        validator.check_schema(schema, format_checker=jsonschema.FormatChecker(()))
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "its top"
        return f"the schema is wrong at {place}: {_line(error.message)}"
    parts = list(_parts(schema))
    for part in parts:
        patterns = [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        patterns += part["patternProperties"] if isinstance(part.get("patternProperties"), dict) else []
        if fault := _reference_fault(part, schema) or next(filter(None, map(pattern_fault, patterns)), ""):
            return fault
    if any("unevaluatedProperties" in part for part in parts) and any("patternProperties" in part for part in parts):
        return "unevaluatedProperties beside patternProperties is not supported; use additionalProperties"
    return ""


def schema_faults(schema: Mapping[str, Any], document: Any) -> list[str]:
    """Return the first faults of a document in the order of their places, each in a line; [] if it is valid."""
    from referencing import Registry

    jsonschema = _library()
    base = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    bounded = {"patternProperties": _pattern_properties, "additionalProperties": _additional_properties}
    validator = jsonschema.validators.extend(base, {"pattern": _pattern, **bounded})
    # An empty registry: whatever a reference names outside of the schema stays unknown and is never fetched.
    errors = validator(schema, registry=Registry()).iter_errors(document)
    faults = []
    for error in errors:
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path]
        faults.append((shorten_middle("$" + "".join(steps), _QUOTED), _line(error.message)))
    return [f"{place}: {message}" for place, message in sorted(faults)[:_SHOWN]]


def _library() -> Any:
    try:
        import jsonschema
    except ImportError:
        fix = 'run pip install "sdpo-mlx[rubric]"'
        raise ConfigError("checks of the kind json_schema need the package jsonschema", fix=fix) from None
    return jsonschema


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for part in schema.values():
            yield from _parts(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _parts(part)


def _reference_fault(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    for word in ("$ref", "$dynamicRef"):
        target = part.get(word)
        if not isinstance(target, str):
            continue
        if not target.startswith("#"):
            return f"{word} {target[:60]!r} points outside of the schema, and nothing is fetched; copy it into $defs"
        if not _found(target[1:], schema):
            return f"{word} {target[:60]!r} points to nothing"
    return ""


def _found(pointer: str, schema: Mapping[str, Any]) -> bool:
    if pointer and not pointer.startswith("/"):
        return any(pointer in (part.get("$anchor"), part.get("$dynamicAnchor")) for part in _parts(schema))
    value: Any = schema
    for word in pointer.split("/")[1:]:
        name = word.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return False
    return True


def pattern_fault(pattern: str) -> str:
    """Return what is wrong with a pattern, "" if nothing is. Raises RecursionError if it is nested too deep."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        return f"the pattern {pattern[:60]!r} is wrong: {error.msg} at character {(error.pos or 0) + 1}"
    return ""


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not searched(pattern, instance):
        yield _library().ValidationError(
            f"{json.dumps(instance, ensure_ascii=False)} does not match the pattern {pattern}"
        )


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, part in patterns.items():
        for name, value in instance.items():
            if searched(pattern, name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [name for name in instance if name not in known and not any(searched(p, name) for p in patterns)]
    if validator.is_type(allowed, "object"):
        for name in extra:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extra:
        named = ", ".join(json.dumps(name, ensure_ascii=False) for name in extra)
        yield _library().ValidationError(f"these fields are not allowed: {named}")


def _line(message: str) -> str:
    return shorten_middle(" ".join(message.split()), _QUOTED)
