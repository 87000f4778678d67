"""Graded answers that were kept, so that an evaluation can be repeated, extended, or go on after a stop.

One file of JSON lines holds the answers of one way of answering (weights, sampling, task: whoever opens it says so
in its name). Each line carries a hash of itself: a torn or damaged one is passed over, and its answer sampled again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx.core.storage import digest, guarded, json_line, plain, sync, trouble, write_all
from sdpo_mlx.types import Feedback, FeedbackKind, FinishReason, IntArray, Problem, Rollout

CacheKey = tuple[str, int]  # the key of a problem, the seed of an answer


@dataclass(frozen=True)
class CachedRollout:
    """One graded answer: the texts of all its turns, and what the grader said; untrusted text, both."""

    seed: int
    texts: tuple[str, ...]
    reward: float
    success: bool
    kind: FeedbackKind
    feedback: str
    finish: FinishReason
    tokens: int

    @classmethod
    def of(cls, rollout: Rollout, said: Feedback) -> CachedRollout:
        """What is worth keeping of a rollout and its verdict."""
        tokens = sum(int(turn.ids_T.size) for turn in rollout.turns)
        verdict = said.reward, said.success, said.kind, said.text
        return cls(rollout.turns[0].seed, rollout.answers, *verdict, rollout.finish, tokens)

    def record(self, problem: str) -> dict[str, Any]:
        """The same for a line of JSON, under the problem's id; `answer` is the last turn's."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("texts", "seed")}
        earlier = {"earlier": list(self.texts[:-1])} if len(self.texts) > 1 else {}
        return {"problem": problem, "seed": self.seed, "answer": self.texts[-1], **earlier, **kept}


def problem_sha256(problem: Problem) -> str:
    """What the model reads of a problem, and what only its grader does, as one hash (hex)."""
    content = {"messages": problem.messages, "tools": problem.tools, "private": problem.private}
    # An object of a task's own may show its address: its kind has to do.
    text = json.dumps(plain(content), sort_keys=True, default=lambda each: type(each).__name__)
    return digest(text.encode("ascii"))


def problem_key(problem: Problem, prompt_ids: IntArray) -> str:
    """A hash of the problem and of its prompt as this model reads it."""
    return digest(
        "\n".join([problem.id, problem_sha256(problem), prompt_ids.tobytes().hex()]).encode("utf-8", "replace")
    )


class RolloutCache:
    """The answers in one file; a missing file is an empty store. Raises StorageError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = guarded(path, path.read_bytes) if path.exists() else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        self._known = dict(found for line in content.splitlines() if (found := _read(line)) is not None)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str, seed: int) -> CachedRollout | None:
        """The answer to the problem of this key that drew from this seed."""
        return self._known.get((key, seed))

    def add(self, answers: Iterable[tuple[str, str, CachedRollout]]) -> None:
        """Keep answers, each with its problem's key and id; they are on the disk when this returns.

        What the grader could not judge isn't kept: its fault may be gone the next time.
        """
        kept = [each for each in answers if each[2].kind != "grader_error"]
        content = b"".join(json_line(_sealed({"key": key, **answer.record(name)})) for key, name, answer in kept)
        if not content:
            return
        guarded(self.path, self.path.parent.mkdir, parents=True, exist_ok=True)
        try:
            self._append(b"\n" + content if self._torn else content)
        except OSError as error:
            self._torn = True
            raise trouble(error, self.path) from error
        self._torn = False
        self._known |= {(key, answer.seed): answer for key, _, answer in kept}

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            write_all(descriptor, content)
            sync(descriptor)
        finally:
            os.close(descriptor)


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "sha256": digest(json_line(record))}


def _read(line: bytes) -> tuple[CacheKey, CachedRollout] | None:
    """One line's answer; None where a byte of it is not as it was written."""
    try:
        record = json.loads(line)
        if record.pop("sha256") != digest(json_line(record)):
            return None
        key, texts = record.pop("key"), (*record.pop("earlier", ()), record.pop("answer"))
        del record["problem"]
        return (key, record["seed"]), CachedRollout(texts=texts, **record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
