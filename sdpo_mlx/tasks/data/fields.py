"""Read single fields of a row: each function returns a checked value or raises DataError that names `where`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.types import Message

_TRAIN = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
ROLES = ("system", "user", "assistant")


def only_fields(row: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a row with a field that is not known."""
    unknown = sorted(map(str, set(row) - set(known)))
    if unknown:
        raise DataError(
            f"unknown field {unknown[0][:40]!r}", where=where, fix=f"the fields are {', '.join(sorted(known))}"
        )


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field that holds text which is not blank."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is missing or not text", where=where, fix=f"give every row a {name}")
    return value


def optional_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a text field, "" if it is missing or null."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name} is not text", where=where, fix="write text, or leave it out")
    return value or ""


def texts_of(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Return a list of texts, [] if it is missing or null."""
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{name} is not a list of texts", where=where, fix='write ["...", "..."]')
    return value


def list_of(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Return a field that holds a list which is not empty."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} is missing, empty or not a list", where=where, fix=f"list the {name}")
    return value


def flag_of(row: Mapping[str, Any], name: str, where: str) -> bool:
    """Return a field that is true or false, false if it is missing."""
    value = row.get(name, False)
    if not isinstance(value, bool):
        raise DataError(f"{name} is neither true nor false", where=where, fix="write one of the two")
    return value


def split_of(row: Mapping[str, Any], where: str) -> str:
    """Return the row's split as `train` or `held_out`, "" if it is missing; see `split_named`. Raises DataError."""
    value = row.get("split")
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    split = split_named(value) if isinstance(value, str) else ""
    if not split:
        what = f"split is neither train nor held_out, {', '.join(HELD_OUT)}"
        raise DataError(what, where=where, fix="write one of these, or leave it out")
    return split


def split_named(name: str) -> str:
    """Return `train` or `held_out` for the name of a split in a public data set, "" for an unknown one.

    Everything but training data is held out: `validation`, `dev`, `test`, also inside longer names such as
    `test_sft` or `auxiliary_train`. Case does not count.
    """
    words = set(re.split(r"[\W_]+", name.casefold()))
    if "held" in words and "out" in words:
        words.add("heldout")
    kinds = {"train" if word in _TRAIN else "held_out" for word in words & {*_TRAIN, *HELD_OUT, "heldout"}}
    return kinds.pop() if len(kinds) == 1 else ""


def messages_of(value: Any, where: str, *, name: str = "messages", question_last: bool = True) -> tuple[Message, ...]:
    """Return a chat; `question_last`: it ends with a message of the user that is not blank."""
    fix = f'write [{{"role": "user", "content": "..."}}]; roles are {", ".join(ROLES)}'
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{name} is not a list of messages", where=where, fix=fix)
    for message in value:
        known = isinstance(message, Mapping) and message.get("role") in ROLES
        if not known or not isinstance(message.get("content"), str):
            raise DataError("a message has no known role or no text", where=where, fix=fix)
    if question_last and (value[-1]["role"] != "user" or not value[-1]["content"].strip()):
        raise DataError("the last message is not the user's", where=where, fix="end with what the model must answer")
    return tuple(Message(role=message["role"], content=message["content"]) for message in value)


def json_of(value: Any, name: str, where: str) -> Any:
    """Return a value that may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise DataError(f"{name} is not JSON: {reason}", where=where, fix="write JSON text") from None


def object_of(value: Any, name: str, where: str) -> dict[str, Any]:
    """Return a JSON object that may be written as text."""
    found = json_of(value, name, where)
    if not isinstance(found, dict):
        raise DataError(f"{name} is not a JSON object", where=where, fix='write {"...": ...}')
    return found


def id_of(row: Mapping[str, Any], *names: str) -> str:
    """Return the first of these fields that can be an id, "" if there is none."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""


def content_id(content: str, digits: int = 12) -> str:
    """Return an id that follows from a row's content, for rows without one."""
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:digits]
