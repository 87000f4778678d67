"""A saved evaluation: the JSON that `sdpo eval` prints and saves and that `sdpo compare` reads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.progress import ProgressCallback, no_progress
from sdpo_mlx.core.storage import guarded, json_line, plain, write_bytes, write_text
from sdpo_mlx.evaluation.cache import rollout_cache
from sdpo_mlx.evaluation.evaluate import Evaluation, ProblemScore, evaluate
from sdpo_mlx.evaluation.spec import eval_spec, settings_record
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs.folder import adapter_sha256

MAX_BYTES = 1_000_000_000
CONDITIONS = ("samples", "seed", "sampling")  # equal in two evaluations that are fully comparable


@dataclass(frozen=True)
class EvalDocument:
    """An evaluation with its target and its settings; scores are shares of 1.

    A file written by another program may hold only problems with their ids and rewards: `conditions` has those of
    `CONDITIONS` that the file has, `settings` is then empty. `cached` is the cache's path and how many rollouts came
    from it.
    """

    scores: Evaluation
    target: str | None = None
    task: str = "?"
    conditions: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    seconds: float = 0.0
    cached: Mapping[str, Any] | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {
            "target": self.target,
            "model": self.model,
            "adapter": self.adapter,
            "task": self.task,
            **_scores(self.scores),
            **self.conditions,
            "settings": self.settings,
            "seconds": round(self.seconds, 3),
            "families": [{"family": name, **_scores(part)} for name, part in self.scores.families().items()],
            "problems": [
                {name: plain(getattr(each, name)) for name in ("id", "family", "sha256", "rewards", "successes")}
                for each in self.scores.problems
            ],
            "kept": self.cached,
        }

    @classmethod
    def from_document(cls, content: Mapping[str, Any]) -> EvalDocument:
        """Read what `to_document` returned; raises ValueError, TypeError, KeyError or AttributeError otherwise."""
        problems = []
        for row in content["problems"]:
            rewards, sha256 = tuple(row["rewards"]), str(row.get("sha256") or "")
            # `isfinite` raises TypeError for anything but numbers.
            if not rewards or not all(map(math.isfinite, rewards)) or not isinstance(row["id"], str):
                raise ValueError("a problem lacks its id or its rewards")
            scores = rewards, tuple(row.get("successes") or ())
            problems.append(ProblemScore(row["id"], str(row.get("family", "")), *scores, sha256=sha256))
        if len({problem.id for problem in problems}) < len(problems):
            raise ValueError("a problem occurs twice")
        seed = content.get("seed", 0)
        if not isinstance(seed, int):
            raise TypeError("the seed is not an integer")
        samples = content.get("samples") or max((len(problem.rewards) for problem in problems), default=0)
        return cls(
            Evaluation(str(content.get("split", "held_out")), samples, tuple(problems), seed),
            target=content.get("target"),
            task=str(content.get("task", "?")),
            conditions={name: content[name] for name in CONDITIONS if name in content},
            settings=dict(content.get("settings") or {}),
            model=dict(content.get("model") or {}),
            adapter=content.get("adapter"),
            seconds=content.get("seconds", 0.0),
            cached=content.get("kept"),
        )


def score(
    components: Components,
    target: str,
    adapter: Path | None,
    *,
    use_cache: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
    on_progress: ProgressCallback = no_progress,
) -> EvalDocument:
    """Evaluate the student as it is; rollouts of an earlier evaluation come from the cache.

    `adapter` is the folder of the adapter that the student holds, None for the untouched model.
    Raises KeyboardInterrupt; rollouts that were graded by then are in the cache. Raises DataError without problems.
    """
    started, spec, counts = time.monotonic(), eval_spec(components), list[int]()
    if not spec.problems:
        task, fix = components.cfg.task, "give some rows of the data the split held_out"
        raise DataError("the task has no held-out problems", where=task.data or task.name, fix=fix)
    cache = rollout_cache(components, spec, adapter) if use_cache else None

    def count(done: int, total: int) -> None:
        counts.append(done)
        on_progress(done, total)

    found = evaluate(components.policy, components.task, components.chat, spec, interrupted, cache, count)
    sampling = {name: getattr(spec.sampling, name) for name in ("temperature", "top_p", "max_tokens")}
    return EvalDocument(
        found,
        target=target,
        task=components.cfg.task.name,
        conditions={"samples": found.samples, "seed": found.seed, "sampling": sampling},
        settings=settings_record(components.cfg),
        model=components.model.record(),
        adapter=adapter_sha256(adapter) if adapter is not None else None,
        seconds=time.monotonic() - started,
        cached=None if cache is None else {"path": str(cache.path), "answers": counts[0]},
    )


def save_evaluation(path: Path, document: EvalDocument) -> None:
    """Write the document, and all rollouts to `.answers.jsonl` beside it. Raises StorageError."""
    answers = path.with_suffix(".answers.jsonl")
    rows = (rollout.record(problem.id) for problem in document.scores.problems for rollout in problem.answers)
    write_bytes(answers, b"".join(map(json_line, rows)))
    content = plain({**document.to_document(), "answers": str(answers)})
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_evaluation(path: Path) -> EvalDocument:
    """Read what `save_evaluation` wrote; raises DataError if the file holds something else."""
    fix = "name a file that `sdpo eval --out` wrote"
    try:
        if guarded(path, path.stat).st_size > MAX_BYTES:
            raise ValueError("the file is too large")
        return EvalDocument.from_document(json.loads(guarded(path, path.read_bytes)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError("not a saved evaluation", where=str(path), fix=fix) from error


def _scores(found: Evaluation) -> dict[str, Any]:
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < found.samples] + [found.samples]
    return {**found.event(), **{f"pass@{k}": found.pass_at(k) for k in ks}}
