"""A lesson: one question, the model's answers as they were sampled, and what a person said about each.

A row of `coaching.jsonl` holds all that a step needs, so that it can be made again from the file alone: the messages,
each answer's ids with their log-probs at sampling time (what the importance weight compares with), and the remarks.
In a task of several turns an answer is an episode's last one; the earlier ones stand before it with their replies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.text import FEEDBACK_LIMIT, clean, well_formed
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.tasks.custom.values import to_problem
from sdpo_mlx.tasks.data.jsonl import collect
from sdpo_mlx.teacher import history
from sdpo_mlx.types import Exchange, Feedback, Problem, Rollout, RolloutGroup

FIELDS = ("problem", "messages", "tokenizer", "answers")
_TURN = {"answer": str, "finish": str, "seed": int, "ids": list, "logps": list}


@dataclass(frozen=True)
class Remark:
    """What was wrong with an answer, in the person's words; both empty where the person said nothing."""

    text: str = ""
    good: bool = False

    @property
    def said(self) -> bool:
        """Whether there is anything to go by."""
        return self.good or bool(self.text)

    @property
    def feedback(self) -> Feedback:
        """The remark as an environment would say it."""
        if self.good:
            return Feedback(1.0, True, "", "pass")
        return Feedback(0.0, False, self.text, "wrong")


@dataclass(frozen=True)
class Lesson:
    """One question with its answers, or the episodes that it began, and a remark for each.

    `last_decides` as in `RolloutGroup`.
    """

    problem: Problem
    rollouts: tuple[Rollout, ...]
    remarks: tuple[Remark, ...]
    last_decides: bool = True

    @property
    def group(self) -> RolloutGroup | None:
        """The answers that something was said about; None where nothing was."""
        pairs = zip(self.rollouts, self.remarks, strict=True)
        said = [(rollout, remark.feedback) for rollout, remark in pairs if remark.said]
        if not said:
            return None
        rollouts, feedback = zip(*said, strict=True)
        return RolloutGroup(self.problem, rollouts, feedback, self.last_decides)

    def row(self, tokenizer: str) -> dict[str, Any]:
        """The lesson as JSON; `tokenizer` is the hash of the one that made the ids."""
        answers = [
            {
                "answer": rollout.text,
                "feedback": remark.text,
                "success": remark.good,
                **_turn_row(rollout),
                **_earlier_rows(rollout),
            }
            for rollout, remark in zip(self.rollouts, self.remarks, strict=True)
        ]
        tools = {"tools": list(self.problem.tools)} if self.problem.tools else {}
        messages = {"messages": list(self.problem.messages), **tools}
        whole = {} if self.last_decides else {"last_decides": False}
        return {"problem": self.problem.id, **messages, "tokenizer": tokenizer, **whole, "answers": answers}


def _turn_row(turn: Rollout) -> dict[str, Any]:
    sampled = {"ids": turn.ids_T.tolist(), "logps": turn.logps_T.tolist()}
    return {"finish": turn.finish, "seed": turn.seed, **sampled}


def _earlier_rows(rollout: Rollout) -> dict[str, Any]:
    """What was said before the last answer; nothing where that is the only one."""
    turns = [{"answer": e.answer.text, "reply": e.reply, **_turn_row(e.answer)} for e in rollout.earlier]
    return {"earlier": turns} if turns else {}


def read_lessons(path: Path, chat: Chat, vocab_size: int) -> list[Lesson]:
    """The lessons of a file in order; raises DataError naming the first ten bad rows with their lines."""
    return collect(path, lambda row, where: lesson_from(row, where, chat, vocab_size), required=FIELDS).items


def lesson_from(row: Mapping[str, Any], where: str, chat: Chat, vocab_size: int) -> Lesson:
    """One lesson from its row; raises DataError that names `where`."""
    if row["tokenizer"] != chat.tokenizer_hash:
        fix = "replay it on the model that gave these answers"
        raise DataError("its ids come from another tokenizer", where=where, fix=fix)
    asked = {"id": row["problem"], "messages": row["messages"], "tools": row.get("tools", ())}
    problem = to_problem(asked, where)
    bad = next(_faults(row, vocab_size), "")
    if bad:
        fix = "take the row as it was saved; only feedback and success may be changed"
        raise DataError(bad, where=where, fix=fix)
    rollouts = tuple(_episode(answer, problem, chat) for answer in row["answers"])
    said = ((clean(answer["feedback"], FEEDBACK_LIMIT).strip(), answer["success"]) for answer in row["answers"])
    return Lesson(problem, rollouts, tuple(Remark(*each) for each in said), row.get("last_decides", True))


def _episode(answer: Mapping[str, Any], problem: Problem, chat: Chat) -> Rollout:
    """The last answer with all before it, every prompt rendered as it was; the ids count, the text is for people."""
    earlier: tuple[Exchange, ...] = ()
    for turn in answer.get("earlier", ()):
        earlier = (*earlier, Exchange(_rollout(turn, problem, chat, earlier), well_formed(turn["reply"])))
    return replace(_rollout(answer, problem, chat, earlier), earlier=earlier)


def _rollout(turn: Mapping[str, Any], problem: Problem, chat: Chat, earlier: Sequence[Exchange]) -> Rollout:
    return Rollout(
        prompt_ids=chat.render((*problem.messages, *history(earlier)), tools=problem.tools),
        ids_T=np.array(turn["ids"], dtype=np.int32),
        logps_T=np.array(turn["logps"], dtype=np.float32),
        finish=turn["finish"],
        seed=turn["seed"],
        text=well_formed(turn["answer"]),
    )


def _faults(row: Mapping[str, Any], vocab_size: int) -> Iterator[str]:
    """What is wrong with a row's answers and all before them; only the first word counts."""
    if type(row.get("last_decides", True)) is not bool:
        yield "last_decides is neither true nor false"
    if not isinstance(row["answers"], list):
        yield "answers is no list"
    for answer in row["answers"]:
        yield from _turn_faults(answer, {**_TURN, "feedback": str, "success": bool}, vocab_size)
        if not isinstance(answer.get("earlier", []), list):
            yield "earlier of an answer is no list"
        for turn in answer.get("earlier", []):
            yield from _turn_faults(turn, {**_TURN, "reply": str}, vocab_size)


def _turn_faults(turn: Any, wanted: Mapping[str, type], vocab_size: int) -> Iterator[str]:
    if not isinstance(turn, Mapping):
        yield "an answer is no object"
    wrong = [name for name, kind in wanted.items() if type(turn.get(name)) is not kind]
    if wrong:
        yield f"{wrong[0]} of an answer is missing or of the wrong type"
    if turn["finish"] not in ("stop", "length"):
        yield "finish of an answer is neither stop nor length"
    if not all(type(i) is int and 0 <= i < vocab_size for i in turn["ids"]):
        yield "ids of an answer are no tokens of this model"
    if not _log_probs(turn["logps"]) or len(turn["logps"]) != len(turn["ids"]):
        yield "logps of an answer are no log-probs, one an id"


def _log_probs(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and value <= 0 for value in values)
