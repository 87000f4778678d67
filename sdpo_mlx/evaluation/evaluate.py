"""Held-out scores with intervals: avg@n, pass@1, pass@k over problems, always on the same seeds.

A saved evaluation is the JSON that `sdpo eval` prints and saves and that `sdpo compare` reads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_mlx.backends.base import Policy
from sdpo_mlx.core import statistics
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.progress import ProgressCallback, no_progress
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.storage import guarded, json_line, plain, write_bytes, write_text
from sdpo_mlx.evaluation.cache import CachedRollout, RolloutCache, problem_key, problem_sha256, rollout_cache
from sdpo_mlx.evaluation.spec import EvalSpec, eval_spec, settings_record
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.rollouts import ProgressPolicy, rollout_seeds, sample
from sdpo_mlx.runs.folder import adapter_sha256
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Problem

BATCHES_PER_WRITE = 2  # with a cache, this many times `concurrency` rollouts are sampled between two writes
MAX_BYTES = 1_000_000_000  # of a saved evaluation
MOST_KEPT = 4  # held-out problems whose rollouts a run keeps at each evaluation
CONDITIONS = ("samples", "seed", "sampling")  # equal in two evaluations that are fully comparable
SampleKey = tuple[int, int]  # index of the problem, index of its rollout


@dataclass(frozen=True)
class ProblemScore:
    """One problem's rollouts: rewards and successes in the order of their seeds.

    `answers` is empty if the prompt did not fit; `sha256` distinguishes problems of the same id.
    """

    id: str
    family: str
    rewards: tuple[float, ...]
    successes: tuple[bool, ...]
    answers: tuple[CachedRollout, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All scores; `score` is the mean reward a problem, its interval a bootstrap over problems."""

    split: str
    samples: int
    problems: tuple[ProblemScore, ...]
    seed: int

    @property
    def score(self) -> float:
        """avg@n of the reward."""
        return statistics.average([p.rewards for p in self.problems])

    @property
    def interval(self) -> statistics.Interval:
        """The 95 % interval of `score`, clustered by problem."""
        return statistics.clustered([p.rewards for p in self.problems], seed=derive("bootstrap", self.seed))

    @property
    def rewards(self) -> dict[str, list[float]]:
        """Rewards by problem id, as events hold them."""
        return {problem.id: list(problem.rewards) for problem in self.problems}

    def pass_at(self, k: int) -> float:
        """Return unbiased pass@k, averaged over the problems that have k rollouts."""
        values = [
            statistics.pass_at_k(len(p.successes), sum(p.successes), k) for p in self.problems if len(p.successes) >= k
        ]
        return sum(values) / len(values) if values else float("nan")

    def families(self) -> dict[str, Evaluation]:
        """Return the evaluation of each family of problems, in the order in which they occur."""
        names = dict.fromkeys(problem.family for problem in self.problems)
        parts = {name: tuple(p for p in self.problems if p.family == name) for name in names}
        return {name: Evaluation(self.split, self.samples, part, self.seed) for name, part in parts.items()}

    def event(self) -> dict[str, Any]:
        """Return the fields of an `eval` event."""
        low, high = self.interval
        n = self.samples
        return {
            "split": self.split,
            "score": self.score,
            **{f"pass@{k}": self.pass_at(k) for k in sorted({1, n})},
            f"avg@{n}": self.score,
            "n": len(self.problems),
            "low": low,
            "high": high,
        }


def evaluate(
    policy: Policy,
    task: Task,
    chat: Chat,
    spec: EvalSpec,
    interrupted: Callable[[], bool] = lambda: False,
    cache: RolloutCache | None = None,
    on_progress: ProgressCallback = no_progress,
) -> Evaluation:
    """Sample and grade every problem; equal weights and seeds give equal rollouts.

    A prompt that does not fit and a rollout that could not be graded count as failures. Rollouts in `cache` are not
    sampled again; with a cache, new ones are sampled and stored in parts. `on_progress` receives the number of
    rollouts: first those from the cache, then each new one, then each stored part.
    """
    run = _EvalRun(policy, task, chat, spec, cache)
    every = [(at, n) for at in range(len(spec.problems)) for n in range(spec.samples)]
    if cache is not None:
        found = {(at, n): cache.find(run.keys[at], run.seeds[at][n]) for at, n in every}
        run.rollouts |= {key: rollout for key, rollout in found.items() if rollout is not None}
    missing, total = [key for key in every if key not in run.rollouts], len(every)
    part_size = total if cache is None else max(1, BATCHES_PER_WRITE * spec.sampling.concurrency)
    done = total - len(missing)
    on_progress(done, total)
    for part in _parts(missing, part_size):
        run.sample(part, interrupted, lambda n, done=done: on_progress(done + n, total))  # type: ignore[misc]
        done += len(part)
        on_progress(done, total)
    scores, samples = list[ProblemScore](), spec.samples
    for at, problem in enumerate(spec.problems):
        rollouts = tuple(run.rollouts[at, n] for n in range(samples) if (at, n) in run.rollouts)
        rewards = tuple(rollout.reward for rollout in rollouts) or (0.0,) * samples
        successes = tuple(rollout.success for rollout in rollouts) or (False,) * samples
        hashed = problem_sha256(problem)
        scores.append(ProblemScore(problem.id, problem.family, rewards, successes, rollouts, hashed))
    return Evaluation("held_out", samples, tuple(scores), spec.seed)


def kept_rollouts(found: Evaluation, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return the first rollout of a few problems, evenly spaced, as rows of a run's rollout files."""
    scored = {score.id: score for score in found.problems if score.answers}
    with_answers = [problem for problem in problems if problem.id in scored]
    count = min(MOST_KEPT, len(with_answers))
    rows = []
    for problem in (with_answers[n * len(with_answers) // count] for n in range(count)):
        rollout = scored[problem.id].answers[0]
        earlier = {"earlier": [{"answer": text} for text in rollout.texts[:-1]]} if len(rollout.texts) > 1 else {}
        rows.append({**rollout.record(problem.id), **earlier, "index": 0, "prompt": list(problem.messages)})
    return rows


class _EvalRun:
    """One evaluation in progress: its rollouts so far by problem and index."""

    def __init__(self, policy: Policy, task: Task, chat: Chat, spec: EvalSpec, cache: RolloutCache | None) -> None:
        self.policy, self.task, self.chat, self.spec, self.cache = policy, task, chat, spec, cache
        self.seeds = rollout_seeds(spec.purpose, spec.seed, 0, spec.problems, spec.samples)
        cached = spec.problems if cache is not None else ()
        self.keys = [problem_key(problem, chat.render(problem.messages, tools=problem.tools)) for problem in cached]
        self.rollouts: dict[SampleKey, CachedRollout] = {}

    def sample(
        self, part: Sequence[SampleKey], interrupted: Callable[[], bool], on_done: Callable[[int], None]
    ) -> None:
        """Sample and grade some rollouts, and store them."""
        single = self.task.max_turns == 1

        def on_progress(done: int, unfinished: int) -> None:
            # With several turns, only episodes without a next turn are done.
            on_done(len(part) - unfinished + (done if single else 0))

        indices: dict[int, list[int]] = {}
        for at, n in part:
            indices.setdefault(at, []).append(n)
        problems = [self.spec.problems[at] for at in indices]
        seeds = [[self.seeds[at][n] for n in row] for at, row in indices.items()]
        policy = ProgressPolicy(self.policy, lambda: on_progress)
        sampled = sample(policy, self.task, self.chat, problems, self.spec.sampling, seeds, interrupted)
        groups = {group.problem.id: group for group in sampled.groups}
        fresh: dict[SampleKey, CachedRollout] = {}
        for at, row in indices.items():
            if group := groups.get(self.spec.problems[at].id):
                pairs = zip(group.rollouts, group.feedback, strict=True)
                fresh |= {(at, n): CachedRollout.of(*pair) for n, pair in zip(row, pairs, strict=True)}
        if self.cache is not None:
            self.cache.add((self.keys[at], self.spec.problems[at].id, rollout) for (at, _), rollout in fresh.items())
        self.rollouts |= fresh


def _parts(samples: Sequence[SampleKey], size: int) -> Iterator[list[SampleKey]]:
    """Yield about `size` rollouts at a time, those of one problem always together."""
    part: list[SampleKey] = []
    for key in samples:
        if len(part) >= size and key[0] != part[-1][0]:
            yield part
            part = []
        part.append(key)
    if part:
        yield part


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
