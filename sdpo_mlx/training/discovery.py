"""discovery@k: the probability that one of the first k attempts succeeds, over problems and seeds (SDPO.md, section 7).

Searches are kept one a line, so that a measurement that was stopped goes on with the searches it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sdpo_mlx.config import Config
from sdpo_mlx.core import statistics
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.storage import trouble
from sdpo_mlx.rl.components import Components
from sdpo_mlx.training.test_time import Budget, Method, Search, solve
from sdpo_mlx.types import Problem

Point = tuple[int, float, statistics.Interval]  # k, discovery@k, its 95 % interval


@dataclass(frozen=True)
class Record:
    """One search: how many attempts it had, and which of them was the first success (None: none was)."""

    method: str
    problem: str
    seed: int
    solved: int | None
    attempts: int
    seconds: float

    def within(self, k: int) -> float | None:
        """1 or 0: whether one of the first k attempts succeeded; None where the search ended before without one."""
        if self.solved is not None:
            return float(self.solved <= k)
        return 0.0 if k <= self.attempts else None


@dataclass(frozen=True)
class Plan:
    """What is measured: every problem with every seed and method, each search within the budget."""

    problems: Sequence[Problem]
    methods: Sequence[Method]
    seeds: Sequence[int]
    budget: Budget

    def searches(self) -> Iterator[tuple[Method, Problem, int]]:
        """In an order that gives every method a whole round of problems before the next seed."""
        for seed in self.seeds:
            for method in self.methods:
                for problem in self.problems:
                    yield method, problem, seed


def measure(
    setup: Components,
    plan: Plan,
    file: Path,
    observe: Callable[[Record], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Make the searches of the plan that `file` lacks, each from the untouched policy; all records in the plan's order.

    A search in the file counts if it was as long as this budget or succeeded. The policy is left untouched.
    """
    known = {(r.method, r.problem, r.seed): r for r in read(file) if r.solved or r.attempts >= plan.budget.attempts}
    untouched, records = setup.policy.state(), []
    try:
        for method, problem, seed in plan.searches():
            record = known.get((method, problem.id, seed))
            if record is None:
                setup.policy.load_state(untouched)
                seeded = replace(setup, cfg=_with_seed(setup, seed))
                found = solve(seeded, problem, method, plan.budget, interrupted=interrupted)
                record = _record(found, method, problem, seed)
                _append(file, record)
            observe(record)
            records.append(record)
    finally:
        setup.policy.load_state(untouched)
    return records


def read(file: Path) -> list[Record]:
    """The records of a file; a last line that was cut off is left out. Raises StorageError for any other damage."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records += [Record(**json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise StorageError("no search can be read", where=f"{file}:{number}", fix="delete the line") from error
    return records


def curve(records: Sequence[Record], ks: Sequence[int], seed: int = 0) -> list[Point]:
    """discovery@k with its 95 % interval, clustered by problem; a k that some search did not reach is left out."""
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


def attempts_for(records: Sequence[Record], share: float) -> int | None:
    """The smallest k with discovery@k of at least `share`; None where the searches do not come so far."""
    firsts = sorted({record.solved for record in records if record.solved is not None})
    for k in firsts:
        reached = [record.within(k) for record in records]
        if None not in reached and sum(value or 0.0 for value in reached) >= share * len(reached):
            return k
    return None


def by_method(records: Sequence[Record]) -> Mapping[str, list[Record]]:
    """The records of each method, in the order of their first appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.method, []).append(record)
    return found


def _with_seed(setup: Components, seed: int) -> Config:
    return setup.cfg.model_copy(update={"train": setup.cfg.train.model_copy(update={"seed": seed})})


def _record(found: Search, method: str, problem: Problem, seed: int) -> Record:
    return Record(method, problem.id, seed, found.solved, found.attempts, round(found.seconds, 3))


def _append(file: Path, record: Record) -> None:
    try:
        text = file.read_bytes() if file.exists() else b""
        if text and not text.endswith(b"\n"):  # a line that was cut off by a kill
            file.write_bytes(text[: text.rfind(b"\n") + 1])
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(record)) + "\n")
    except OSError as error:
        raise trouble(error, file) from error
