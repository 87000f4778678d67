"""Convert what a user-defined task returns, in every accepted form, into `Problem` and `Feedback`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.base import Split
from sdpo_mlx.tasks.data.fields import messages_of, split_of
from sdpo_mlx.tasks.references import given
from sdpo_mlx.tasks.tools.formats import tool_from
from sdpo_mlx.types import Feedback, FeedbackKind, Message, Problem

KINDS = get_args(FeedbackKind)
_SHOWN = {"id", "prompt", "messages", "tools", "split", "family"}
_FORMS = "return a number, true or false, (reward, feedback), a dictionary with reward, or a Feedback"


def to_problem(row: Any, where: str, split: Split | None = None, number: int = 0) -> Problem:
    """Return a problem from a dictionary or a Problem; `split` and `number` are used if the row has none.

    Raises DataError that names `where`.
    """
    if isinstance(row, Problem):
        chosen = split or row.private.get("split")
        return replace(row, private={**row.private, "split": chosen}) if chosen else row
    if not isinstance(row, Mapping):
        fix = 'give dictionaries such as {"id": "a", "prompt": "..."}'
        raise DataError(f"a problem is not a dictionary but {type(row).__name__}", where=where, fix=fix)
    named = split or split_of(row, where)
    private = {key: value for key, value in row.items() if key not in _SHOWN}
    identity = str(row.get("id", "") or (f"{split}-{number}" if split else number or where))
    family, tools = str(row.get("family", "")), _tools(row, where)
    private["split"] = named
    return Problem(identity, _messages(row, where), private, family, tools, reference=given(row, "reference"))


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """Return the row's messages, or its prompt as the only one."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return ({"role": "user", "content": prompt},)
    messages = row.get("messages", prompt if isinstance(prompt, list) else None)
    if messages is None:
        raise DataError("prompt is missing or not text", where=where, fix='write "prompt": "..." or "messages": [...]')
    found = messages_of(messages, where, question_last=False)
    if not any(message["role"] == "user" for message in found):
        raise DataError("no message has the role user", where=where, fix="write the question as a user message")
    return found


def _tools(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the row's tools, for the chat template's `tools`."""
    tools = row.get("tools", ())
    if not isinstance(tools, list | tuple):
        raise DataError("tools is not a list", where=where, fix="list the tools, each with a name and parameters")
    return tuple(tool_from(tool, f"{where}, tool {number}") for number, tool in enumerate(tools, 1))


def to_feedback(given: Any) -> Feedback:
    """Return a Feedback from every form that `grade` may return. Raises TypeError or ValueError for anything else."""
    if isinstance(given, Feedback):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return _feedback({"reward": given[0], "feedback": given[1]})
    if isinstance(given, Mapping):
        return _feedback(given)
    return _feedback({"reward": given})


def _feedback(grade: Mapping[str, Any]) -> Feedback:
    unknown = set(grade) - {"reward", "feedback", "success", "kind"}
    reward, text = grade.get("reward"), grade.get("feedback")
    if unknown or (not isinstance(reward, bool | int | float) and not _is_scalar(reward)):
        got = f"the unknown key {sorted(map(str, unknown))[0]!r}" if unknown else f"{type(reward).__name__} as reward"
        raise TypeError(f"grade returned {got}; {_FORMS}")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"grade returned {type(text).__name__} as feedback; {_FORMS}")
    value = float(cast(float, reward))
    success = bool(grade.get("success", value >= 1.0))
    kind = grade.get("kind", "pass" if success else "wrong")
    if kind not in KINDS:
        raise ValueError(f"grade returned the kind {kind!r}; the kinds are {', '.join(KINDS)}")
    return Feedback(value, success, "" if success else text or "", kind)


def _is_scalar(value: Any) -> bool:
    """Return whether this is a number of numpy or a similar library."""
    return getattr(value, "shape", None) == () and hasattr(value, "__float__")
