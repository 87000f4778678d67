"""A lesson: one question, the model's answers as they were sampled, and what a person said about each.

A row of `coaching.jsonl` holds all that a step needs, so that it can be made again from the file alone: the messages,
each answer's ids with their log-probs at sampling time (what the importance weight compares with), and the remarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_mlx.chat import Chat
from sdpo_mlx.data import collect
from sdpo_mlx.errors import DataError
from sdpo_mlx.tasks.own_values import problem_of
from sdpo_mlx.text import FEEDBACK_LIMIT, clean
from sdpo_mlx.types import Feedback, IntArray, Problem, Rollout, RolloutGroup

FIELDS = ("problem", "messages", "tokenizer", "answers")


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
    """One question with its answers, and a remark for each."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    remarks: tuple[Remark, ...]

    @property
    def group(self) -> RolloutGroup | None:
        """The answers that something was said about; None where nothing was."""
        pairs = zip(self.rollouts, self.remarks, strict=True)
        said = [(rollout, remark.feedback) for rollout, remark in pairs if remark.said]
        if not said:
            return None
        rollouts, feedback = zip(*said, strict=True)
        return RolloutGroup(self.problem, rollouts, feedback)

    def row(self, tokenizer: str) -> dict[str, Any]:
        """The lesson as JSON; `tokenizer` is the hash of the one that made the ids."""
        answers = [
            {
                "answer": rollout.text,
                "feedback": remark.text,
                "success": remark.good,
                "finish": rollout.finish,
                "seed": rollout.seed,
                "ids": rollout.ids_T.tolist(),
                "logps": rollout.logps_T.tolist(),
            }
            for rollout, remark in zip(self.rollouts, self.remarks, strict=True)
        ]
        tools = {"tools": list(self.problem.tools)} if self.problem.tools else {}
        messages = {"messages": list(self.problem.messages), **tools}
        return {"problem": self.problem.id, **messages, "tokenizer": tokenizer, "answers": answers}


def read_lessons(path: Path, chat: Chat, vocab_size: int) -> list[Lesson]:
    """The lessons of a file in order; raises DataError naming the first ten bad rows with their lines."""
    return collect(path, lambda row, where: lesson_from(row, where, chat, vocab_size), required=FIELDS).items


def lesson_from(row: Mapping[str, Any], where: str, chat: Chat, vocab_size: int) -> Lesson:
    """One lesson from its row; raises DataError that names `where`."""
    if row["tokenizer"] != chat.tokenizer_hash:
        fix = "replay it on the model that gave these answers"
        raise DataError("its ids come from another tokenizer", where=where, fix=fix)
    asked = {"id": row["problem"], "messages": row["messages"], "tools": row.get("tools", ())}
    problem = problem_of(asked, where)
    if not isinstance(row["answers"], list):
        raise DataError("answers is no list", where=where, fix="take the row as it was saved")
    prompt = chat.render(problem.messages, tools=problem.tools)
    answers = [_answer(answer, where, prompt, vocab_size) for answer in row["answers"]]
    rollouts, remarks = tuple(rollout for rollout, _ in answers), tuple(remark for _, remark in answers)
    return Lesson(problem, rollouts, remarks)


def _answer(answer: Any, where: str, prompt: IntArray, vocab_size: int) -> tuple[Rollout, Remark]:
    """One answer and its remark; the ids count, the text beside them is for people."""
    bad = _fault(answer, vocab_size)
    if bad:
        raise DataError(bad, where=where, fix="take the row as it was saved; only feedback and success may be changed")
    rollout = Rollout(
        prompt_ids=prompt,
        ids_T=np.array(answer["ids"], dtype=np.int32),
        logps_T=np.array(answer["logps"], dtype=np.float32),
        finish=answer["finish"],
        seed=answer["seed"],
        text=answer["answer"],
    )
    return rollout, Remark(clean(answer["feedback"], FEEDBACK_LIMIT).strip(), answer["success"])


def _fault(answer: Any, vocab_size: int) -> str:
    """What is wrong with the answer of a row; empty where nothing is."""
    if not isinstance(answer, Mapping):
        return "an answer is no object"
    wanted = {"answer": str, "feedback": str, "success": bool, "finish": str, "seed": int, "ids": list, "logps": list}
    wrong = [name for name, kind in wanted.items() if type(answer.get(name)) is not kind]
    if wrong:
        return f"{wrong[0]} of an answer is missing or of the wrong type"
    if answer["finish"] not in ("stop", "length"):
        return "finish of an answer is neither stop nor length"
    if not all(type(i) is int and 0 <= i < vocab_size for i in answer["ids"]):
        return "ids of an answer are no tokens of this model"
    if not _log_probs(answer["logps"]) or len(answer["logps"]) != len(answer["ids"]):
        return "logps of an answer are no log-probs, one an id"
    return ""


def _log_probs(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and value <= 0 for value in values)
