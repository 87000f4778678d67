"""Free text graded by checks in each row: format, length, words, JSON, language.

    {"id": "haiku", "prompt": "Write ...", "checks": [{"kind": "lines", "value": 3, "feedback": "..."}, ...]}

- `prompt` (text) or `messages` (a chat whose last turn is the user's); `checks` as in `checks.py`.
- optional: `id`, `split` ("train", "held_out"), `family`, `reference` (`references.py`).

The reward is the weighted share of checks that an answer passes, thinking removed; success only when it passes
all. An empty answer passes nothing: an empty text would satisfy many checks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.text import strip_thinking
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.data.fields import content_id, id_of, messages_of, only_fields, split_of, text_of
from sdpo_mlx.tasks.dataset import feedback_mode, load_problems
from sdpo_mlx.tasks.references import checked
from sdpo_mlx.tasks.rubric.checks import Check, check_from_row
from sdpo_mlx.types import Feedback, Message, Problem

FEEDBACK_MODES = ("checks", "failed", "none")
LONGEST_ANSWER = 100_000  # characters; far more than any model is allowed to write
MOST_CHECKS = 50
_FIELDS = frozenset(("id", "prompt", "messages", "checks", "split", "family", "reference"))


class RubricTask(Task):
    """Answer so that every check of the row holds."""

    name = "rubric"
    description = "free text judged by checks that each row carries"
    feedback_modes = FEEDBACK_MODES

    def __init__(self, cfg: TaskConfig | None = None) -> None:
        """`cfg.data`: rows as above, None for the shipped ones; `cfg.feedback`: None for `checks`.

        Modes: `checks` reports every check, `failed` those that fail, `none` nothing.
        Raises ConfigError for an unknown mode, DataError for bad rows.
        """
        cfg = cfg or TaskConfig(name=self.name)
        self.feedback = feedback_mode(self.name, cfg.feedback, FEEDBACK_MODES)
        self.rows = load_problems(cfg, "rubric/problems.jsonl", problem_from_row)

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Return reward: the weighted share of checks that hold; raises if a row's pattern runs too long."""
        answer = strip_thinking(text)
        checks: Sequence[Check] = problem.private["checks"]
        cut_off = "The answer ran out of tokens before its end; be briefer." if truncated else ""
        if not answer:
            reason = "The answer is empty, or nothing is left when its thinking is removed."
            return self._verdict(0.0, [cut_off, reason], "invalid")
        if len(answer) > LONGEST_ANSWER:
            reason = f"The answer has {len(answer)} characters; at most {LONGEST_ANSWER} are read."
            return self._verdict(0.0, [reason], "invalid")
        failures = [check.failure(answer) for check in checks]
        if not any(failures):
            return Feedback(1.0, True, "", "pass")
        held = sum(check.weight for check, failure in zip(checks, failures, strict=True) if not failure)
        reasons = [
            failure or (f"ok: {check.requirement}" if self.feedback == "checks" else "")
            for check, failure in zip(checks, failures, strict=True)
        ]
        return self._verdict(held / sum(check.weight for check in checks), [cut_off, *reasons], "wrong")

    def _verdict(self, reward: float, lines: Sequence[str], kind: Any) -> Feedback:
        """Return a failure, however close the reward is to 1."""
        text = "" if self.feedback == "none" else "\n".join(line for line in lines if line)
        return Feedback(min(reward, 0.999), False, text, kind)


def problem_from_row(row: dict[str, Any], where: str) -> Problem:
    """One checked problem; `private` holds checks and split. Raises DataError that names `where`."""
    only_fields(row, _FIELDS, where)
    if ("prompt" in row) == ("messages" in row):
        raise DataError("a row has either a prompt or messages", where=where, fix='write {"prompt": "...", ...}')
    if "prompt" in row:
        messages: tuple[Message, ...] = ({"role": "user", "content": text_of(row, "prompt", where)},)
    else:
        messages = messages_of(row["messages"], where)
    rows = row.get("checks")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_CHECKS:
        raise DataError(f"checks is not a list of 1 to {MOST_CHECKS}", where=where, fix="give every row its checks")
    checks = tuple(check_from_row(check, f"{where}, check {number}") for number, check in enumerate(rows, 1))
    private = {"checks": checks, "split": split_of(row, where)}
    content = json.dumps([messages, rows], sort_keys=True, default=str)
    identity = id_of(row, "id") or f"rubric/{content_id(content)}"
    return Problem(identity, messages, private, str(row.get("family", "")), reference=checked(row, where))
