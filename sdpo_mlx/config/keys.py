"""The keys of the configuration and the values that each one allows, read from the schema of `Config`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdpo_mlx.config.schema import Config


def _leaves(node: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, schema in node["properties"].items():
        if "$ref" in schema:
            yield from _leaves(definitions[schema["$ref"].rpartition("/")[2]], definitions, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", schema


_SCHEMA = Config.model_json_schema()
# Dotted key -> its JSON Schema, in the order of the tree.
LEAVES: Mapping[str, dict[str, Any]] = dict(_leaves(_SCHEMA, _SCHEMA["$defs"], ""))
SECTIONS = frozenset(key.rsplit(".", depth)[0] for key in LEAVES for depth in range(1, key.count(".") + 1))


def children(section: str) -> tuple[str, ...]:
    """Return the names directly below a section, in order; the empty section is the top level."""
    prefix = f"{section}." if section else ""
    below = (key[len(prefix) :].partition(".")[0] for key in LEAVES if key.startswith(prefix))
    return tuple(dict.fromkeys(below))


def options(key: str) -> list[dict[str, Any]]:
    """Return the alternative JSON Schemas of a key's value."""
    schema = LEAVES[key]
    return list(schema.get("anyOf", [schema]))


def choices(key: str) -> tuple[str, ...]:
    """Return the strings that a key allows; empty if it is not a choice of strings."""
    values = (value for option in options(key) for value in option.get("enum", [option.get("const")]))
    return tuple(value for value in values if isinstance(value, str))


def members(key: str) -> tuple[str, ...]:
    """Return the strings that a list may hold; empty if it may hold any."""
    return tuple(value for option in options(key) for value in option.get("items", {}).get("enum", ()))


def takes(key: str, kind: str) -> bool:
    """Whether values of this JSON type (`string`, `number`, `integer`, `null`, ...) are allowed."""
    return any(option.get("type") == kind for option in options(key))


def takes_texts(key: str) -> bool:
    """Whether values are lists of any texts, not of names."""
    return any("minLength" in option.get("items", {}) for option in options(key))


def allowed(key: str) -> str:
    """Describe what a key allows: `an integer above 0, or null`."""
    return ", or ".join(_described(option) for option in options(key))


def _described(option: dict[str, Any]) -> str:
    if "enum" in option:
        return "one of " + ", ".join(map(str, option["enum"]))
    if values := option.get("items", {}).get("enum"):
        return "a list of " + ", ".join(values)
    if "const" in option:
        return str(option["const"])
    if option.get("items", {}).get("minLength"):
        return "a list of non-empty strings"
    kinds = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "string": "a string",
        "array": "a list of strings",
        "null": "null",
    }
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{phrase} {option[limit]:g}" for limit, phrase in limits.items() if limit in option]
    kind = "a non-empty string" if option.get("minLength") else kinds.get(option.get("type", ""), "a value")
    return " ".join([kind, " and ".join(bounds)]).rstrip()
