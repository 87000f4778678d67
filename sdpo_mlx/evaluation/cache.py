"""The cache of graded rollouts, so that an evaluation can be repeated, extended, or resumed.

One JSON Lines file holds the rollouts of one policy, sampling and task; `cache_key` hashes all of that into its name.
Each line carries a hash of itself: a torn or damaged one is skipped, and its rollout sampled again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx import __version__
from sdpo_mlx.core.jsonl import JsonlWriter, read_records, seal, unseal
from sdpo_mlx.core.storage import cache_home, digest, guarded, json_line, plain
from sdpo_mlx.evaluation.spec import EvalSpec
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs.folder import adapter_sha256
from sdpo_mlx.runs.targets import is_run
from sdpo_mlx.tasks.data.sources import identity
from sdpo_mlx.types import Feedback, FeedbackKind, FinishReason, IntArray, Problem, Rollout

# Details of a policy that change how it computes, not what; they may change during a run.
_NOT_IN_KEY = ("micro_batch_tokens", "learning")
# The first changes a rollout by rounding at most; the second follows from `rollout.stop` and the template, which is in
# the tokenizer's hash.
_NOT_SAMPLED = ("concurrency", "at_stop_text")


@dataclass(frozen=True)
class CachedRollout:
    """One graded rollout: the texts of all its turns and the grader's feedback; both are untrusted text."""

    seed: int
    texts: tuple[str, ...]
    reward: float
    success: bool
    kind: FeedbackKind
    feedback: str
    finish: FinishReason
    tokens: int

    @classmethod
    def of(cls, rollout: Rollout, feedback: Feedback) -> CachedRollout:
        """Return the part of a graded rollout that is stored."""
        tokens = sum(int(turn.ids_T.size) for turn in rollout.turns)
        grade = feedback.reward, feedback.success, feedback.kind, feedback.text
        return cls(rollout.turns[0].seed, rollout.answers, *grade, rollout.finish, tokens)

    def record(self, problem: str) -> dict[str, Any]:
        """Return the rollout as JSON under the problem's id; `answer` is the last turn's text."""
        stored = {name: value for name, value in asdict(self).items() if name not in ("texts", "seed")}
        earlier = {"earlier": list(self.texts[:-1])} if len(self.texts) > 1 else {}
        return {"problem": problem, "seed": self.seed, "answer": self.texts[-1], **earlier, **stored}


def problem_sha256(problem: Problem) -> str:
    """Return one hash (hex) of what the model reads of a problem and what only its grader does."""
    content = {"messages": problem.messages, "tools": problem.tools, "private": problem.private}
    # The repr of a task's own object may contain its address, so its type name has to do.
    text = json.dumps(plain(content), sort_keys=True, default=lambda each: type(each).__name__)
    return digest(text.encode("ascii"))


def problem_key(problem: Problem, prompt_ids: IntArray) -> str:
    """Return a hash of the problem and of its prompt as this model reads it."""
    return digest(
        "\n".join([problem.id, problem_sha256(problem), prompt_ids.tobytes().hex()]).encode("utf-8", "replace")
    )


class RolloutCache:
    """The rollouts of one file, by problem key and seed; a missing file is empty. Raises StorageError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rollouts: dict[tuple[str, int], CachedRollout] = {}
        for record in read_records(path):
            content = unseal(record)
            with suppress(TypeError, KeyError):
                if content is not None:  # otherwise a byte of the line was changed
                    key, texts = content.pop("key"), (*content.pop("earlier", ()), content.pop("answer"))
                    del content["problem"]
                    self._rollouts[key, content["seed"]] = CachedRollout(texts=texts, **content)

    def __len__(self) -> int:
        return len(self._rollouts)

    def find(self, key: str, seed: int) -> CachedRollout | None:
        """Return the rollout of the problem of this key that was sampled with this seed."""
        return self._rollouts.get((key, seed))

    def add(self, rollouts: Iterable[tuple[str, str, CachedRollout]]) -> None:
        """Store rollouts, each with its problem's key and id; they are on the disk when this returns.

        Rollouts with a `grader_error` are not stored: the cause may be gone next time.
        """
        graded = [each for each in rollouts if each[2].kind != "grader_error"]
        if not graded:
            return
        guarded(self.path, self.path.parent.mkdir, parents=True, exist_ok=True)
        with JsonlWriter(self.path, shared=True) as file:
            file.append(seal({"key": key, **rollout.record(problem)}) for key, problem, rollout in graded)
            file.sync()
        self._rollouts |= {(key, rollout.seed): rollout for key, _, rollout in graded}


def cache_key(setup: Components, spec: EvalSpec, adapter: Path | None) -> dict[str, Any]:
    """Return everything that a rollout or its grade depends on besides problem and seed.

    `adapter` is the folder of one. Without it the adapter's settings do not count, except for DoRA, which rounds
    differently even when untrained.
    """
    cfg, info, settings = setup.cfg, setup.policy.info, setup.cfg.model.adapter
    counts = adapter is not None or settings.kind == "dora"
    sampling = {name: value for name, value in vars(spec.sampling).items() if name not in _NOT_SAMPLED}
    if cfg.rollout.stop:
        sampling["stop"] = cfg.rollout.stop
    data = cfg.task.data
    # These names and their order are hashed into the file's name.
    return {
        "version": __version__,
        "base": setup.model.weights_sha256,
        "adapter": adapter_sha256(adapter) if adapter is not None else "",
        "shape": settings.model_dump(mode="json") if counts else None,
        "tokenizer": setup.chat.tokenizer_hash,
        "model": cfg.model.model_dump(mode="json", include={"bits", "thinking"}),
        "policy": [info.backend, info.device, info.dtype, info.context_length],
        "details": {name: value for name, value in info.details.items() if name not in _NOT_IN_KEY},
        "sampling": {**sampling, "eos_ids": sorted(spec.sampling.eos_ids)},
        "task": cfg.task.model_dump(mode="json"),
        "data": identity(data) if data else None,
        "own": setup.task.fingerprint,
        "grading": [cfg.judge.model_dump(mode="json"), cfg.sandbox.model_dump(mode="json"), setup.sandbox],
    }


def rollout_cache(setup: Components, spec: EvalSpec, adapter: Path | None = None) -> RolloutCache:
    """Open the cache in the run folder's `evals/` if the adapter is a run's and writable, else in the user's cache."""
    beside = adapter is not None and is_run(adapter) and os.access(adapter, os.W_OK)
    home = adapter if adapter is not None and beside else cache_home()
    return RolloutCache(home / "evals" / f"{digest(json_line(cache_key(setup, spec, adapter)))[:32]}.jsonl")
