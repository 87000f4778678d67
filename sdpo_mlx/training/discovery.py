"""discovery@k: the probability that one of the first k attempts succeeds, over problems and seeds.

Each search is one line of a file, so that an interrupted measurement resumes with the missing searches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from sdpo_mlx.core import statistics
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.jsonl import JsonlWriter, numbered_lines
from sdpo_mlx.rl.components import Components
from sdpo_mlx.training.test_time import Budget, Method, solve
from sdpo_mlx.types import Problem

Point = tuple[int, float, statistics.Interval]  # k, discovery@k, its 95 % interval


@dataclass(frozen=True)
class SearchRecord:
    """One search: its number of attempts, and which of them was the first success (None if none was)."""

    method: str
    problem: str
    seed: int
    solved: int | None
    attempts: int
    seconds: float

    def within(self, k: int) -> float | None:
        """Return 1 or 0: whether one of the first k attempts succeeded; None if the search ended earlier without."""
        if self.solved is not None:
            return float(self.solved <= k)
        return 0.0 if k <= self.attempts else None


@dataclass(frozen=True)
class Plan:
    """Every problem with every seed and method, each search within the budget."""

    problems: Sequence[Problem]
    methods: Sequence[Method]
    seeds: Sequence[int]
    budget: Budget


def measure(
    components: Components,
    plan: Plan,
    file: Path,
    on_search: Callable[[SearchRecord], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[SearchRecord]:
    """Run the searches of the plan that `file` lacks, each from the initial policy; return all in the plan's order.

    A search in the file counts if it had the whole budget or succeeded. The policy is restored at the end.
    """
    known = {(r.method, r.problem, r.seed): r for r in read(file) if r.solved or r.attempts >= plan.budget.attempts}
    initial, records = components.policy.state(), []
    try:
        # Every method gets a round of problems before the next seed.
        for seed, method, problem in product(plan.seeds, plan.methods, plan.problems):
            record = known.get((method, problem.id, seed))
            if record is None:
                components.policy.load_state(initial)
                train = components.cfg.train.model_copy(update={"seed": seed})
                seeded = replace(components, cfg=components.cfg.model_copy(update={"train": train}))
                found = solve(seeded, problem, method, plan.budget, interrupted=interrupted)
                seconds = round(found.seconds, 3)
                record = SearchRecord(method, problem.id, seed, found.solved, found.attempts, seconds)
                with JsonlWriter(file) as writer:
                    writer.append([asdict(record)])
            on_search(record)
            records.append(record)
    finally:
        components.policy.load_state(initial)
    return records


def read(file: Path) -> list[SearchRecord]:
    """Return the records of a file without a torn last line. Raises StorageError for any other damage."""
    records = []
    for number, row in numbered_lines(file):
        try:
            records.append(SearchRecord(**(row or {})))
        except TypeError as error:
            raise StorageError("the search cannot be read", where=f"{file}:{number}", fix="delete the line") from error
    return records


def curve(records: Sequence[SearchRecord], ks: Sequence[int], seed: int = 0) -> list[Point]:
    """Return discovery@k with its 95 % interval, clustered by problem, up to the k that every search reached."""
    points: list[Point] = []
    for k in ks:
        rows: dict[str, list[float]] = {}
        for record in records:
            value = record.within(k)
            if value is None:
                return points
            rows.setdefault(record.problem, []).append(value)
        values = list(rows.values())
        points.append((k, statistics.average(values), statistics.clustered(values, seed=seed)))
    return points


def attempts_for(records: Sequence[SearchRecord], share: float) -> int | None:
    """Return the smallest k with discovery@k of at least `share`; None if the searches do not reach it."""
    firsts = sorted({record.solved for record in records if record.solved is not None})
    for k in firsts:
        reached = [record.within(k) for record in records]
        if None not in reached and sum(value or 0.0 for value in reached) >= share * len(reached):
            return k
    return None


def by_method(records: Sequence[SearchRecord]) -> Mapping[str, list[SearchRecord]]:
    """Return the records of each method, in the order of their first appearance."""
    found: dict[str, list[SearchRecord]] = {}
    for record in records:
        found.setdefault(record.method, []).append(record)
    return found
