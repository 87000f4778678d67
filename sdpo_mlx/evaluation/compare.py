"""Two evaluations side by side: the difference paired by problem, and whether it can be believed.

It works on the documents that `sdpo eval --json` prints and `--out` saves. A difference is believed where its 95 %
bootstrap interval over problems leaves out 0 and enough problems differ at all: with m of them, the exact sign-flip
test cannot give less than 2^(1-m), which is above 5 % for m below 6, whatever a bootstrap of so few says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sdpo_mlx.core import statistics
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.storage import guarded

Z, POWER = 1.96, 0.84  # normal quantiles: of a 95 % interval, and of being right four times in five
FEWEST_DIFFERENT = 6
NOTHING = 1e-12  # a difference of scores below this is rounding
MOST_BYTES = 1_000_000_000
LIKE = ("samples", "seed", "sampling")  # what two evaluations share where they ask alike

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """One problem's mean reward on both sides."""

    id: str
    family: str
    first: float
    second: float

    @property
    def change(self) -> float:
        """Second minus first."""
        return self.second - self.first


@dataclass(frozen=True)
class Score:
    """One side's score on the shared problems."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Second minus first over the shared problems (shares of 1, NaN where there is nothing to go by).

    `left_out` counts problems that only the first has, only the second has, or that differ under one id.
    """

    pairs: tuple[Pair, ...]
    difference: float
    interval: statistics.Interval
    left_out: tuple[int, int, int]
    seed: int
    notes: tuple[str, ...] = ()
    asked_otherwise: bool = False  # temperature, top_p or length of answers differ

    @property
    def scores(self) -> tuple[Score, Score]:
        """Each side's, with its interval clustered by problem."""
        return self._scored([[pair.first] for pair in self.pairs]), self._scored([[pair.second] for pair in self.pairs])

    def _scored(self, rows: statistics.Rows) -> Score:
        return Score(statistics.average(rows), *statistics.clustered(rows, seed=self.seed))

    @property
    def won(self) -> tuple[Pair, ...]:
        """Problems on which the second is better, the largest gain first."""
        return tuple(sorted((p for p in self.pairs if p.change > NOTHING), key=lambda p: -p.change))

    @property
    def lost(self) -> tuple[Pair, ...]:
        """Problems on which the second is worse, the largest loss first."""
        return tuple(sorted((p for p in self.pairs if p.change < -NOTHING), key=lambda p: p.change))

    @property
    def believed(self) -> bool:
        """Whether chance alone hardly makes such a difference."""
        return (self.interval.low > 0 or self.interval.high < 0) and self._different >= FEWEST_DIFFERENT

    @property
    def needed(self) -> int | None:
        """About how many problems more would show a difference of this size, four times in five; None if unknown.

        ((1.96 + 0.84) s / d)^2 problems in all, s being the deviation of the paired differences, d their mean (at
        (1.96 s / d)^2 it would be a toss-up), and as many as bring `FEWEST_DIFFERENT` that differ; 0 where the
        difference is believed already.
        """
        if self.believed:
            return 0
        n = len(self.pairs)
        if n < 2 or abs(self.difference) < NOTHING:
            return None
        spread = stdev(pair.change for pair in self.pairs)
        enough = max(((Z + POWER) * spread / self.difference) ** 2, FEWEST_DIFFERENT * n / self._different)
        return max(1, math.ceil(enough) - n)

    @property
    def _different(self) -> int:
        return len(self.won) + len(self.lost)

    def sentence(self) -> str:
        """Whether the difference can be believed, for a person."""
        return self._verdict() + self._doubt()

    def _doubt(self) -> str:
        """What stands between the figures and the two models."""
        if not self.asked_otherwise:
            return ""
        return " But the two were sampled in different ways, and that alone may make a difference."

    def _verdict(self) -> str:
        n, (low, high) = len(self.pairs), self.interval
        if n < 2:
            return "Nothing can be said of one problem alone: an interval needs two at the least."
        if self.believed:
            return (
                f"The difference can be believed: its 95 % interval, {100 * low:+.1f} to {100 * high:+.1f} points, "
                "leaves out 0."
            )
        if self.needed is None:
            evenly = "gains and losses even out" if self._different else "no problem was won or lost"
            missed = f", and would not be one time in twenty if {1 - 0.05 ** (1 / n):.0%} of all such problems differed"
            seen = "" if self._different else missed
            return f"There is no difference to believe in: {evenly} over these {n} problems{seen}."
        why = "its 95 % interval includes 0"
        if low > 0 or high < 0:
            few = f"all {n}" if self._different == n else f"{self._different} of {n}"
            why = f"{few} problems were won or lost, and chance may do that with so few"
        return (
            f"The difference cannot be believed: {why}. If it is as large as it looks, about {self.needed:,} "
            f"problems more ({n + self.needed:,} in all) would show it four times in five."
        )


def compare(first: Document, second: Document) -> Comparison:
    """Pair two evaluations by problem; raises DataError where they have no problem in common."""
    ours, theirs = ({each["id"]: each for each in side["problems"]} for side in (first, second))
    both = [name for name in ours if name in theirs]
    shared = [name for name in both if _same(ours[name], theirs[name])]
    if not shared:
        tasks = " and ".join(dict.fromkeys(str(side.get("task", "?")) for side in (first, second)))
        raise DataError(
            "the two evaluations have no problem in common", where=tasks, fix="evaluate both on the same task and data"
        )
    rows = [[side[name]["rewards"] for name in shared] for side in (ours, theirs)]
    seed = derive("paired", int(first.get("seed", 0)))
    difference, interval = statistics.paired(rows[0], rows[1], seed=seed)
    pairs = tuple(
        Pair(name, str(ours[name].get("family", "")), fmean(a), fmean(b))
        for name, a, b in zip(shared, *rows, strict=True)
    )
    left_out = len(ours) - len(both), len(theirs) - len(both), len(both) - len(shared)
    notes = _unlike(first, second)
    otherwise = any(note.startswith("sampling") for note in notes)
    return Comparison(pairs, difference, interval, left_out, seed, notes, otherwise)


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `sdpo eval --out` saved; raises DataError where the file holds something else."""
    fix = "name a file that `sdpo eval --out` wrote"
    try:
        if guarded(path, path.stat).st_size > MOST_BYTES:
            raise ValueError("it is too large")
        found = json.loads(guarded(path, path.read_bytes))
        ids = [_checked(each) for each in found["problems"]]
        if len(set(ids)) < len(ids):
            raise ValueError("a problem stands there twice")
        if not isinstance(found.get("seed", 0), int):
            raise TypeError("the seed is no number")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError("this is no saved evaluation", where=str(path), fix=fix) from error
    return dict(found)


def _checked(problem: Mapping[str, Any]) -> str:
    """The id of a problem whose figures are what they should be."""
    rewards = problem["rewards"]
    # `isfinite` takes numbers alone
    if not rewards or not all(map(math.isfinite, rewards)) or not isinstance(problem["id"], str):
        raise ValueError("a problem lacks its id or its rewards")
    return problem["id"]


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two problems of one id are one; a file of someone else's need not say."""
    hashes = ours.get("sha256"), theirs.get("sha256")
    return None in hashes or hashes[0] == hashes[1]


def _unlike(first: Document, second: Document) -> tuple[str, ...]:
    """A word for each way in which the two were not asked alike."""
    return tuple(
        f"{name} differs: {json.dumps(first.get(name))} and {json.dumps(second.get(name))}"
        for name in LIKE
        if name in first and name in second and first[name] != second[name]
    )
