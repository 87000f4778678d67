"""Two evaluations side by side: the difference paired by problem, and whether it is significant.

A difference is significant if its 95 % bootstrap interval over problems excludes 0 and enough problems differ at all:
with m of them, the exact sign-flip test cannot give less than 2^(1-m), which is above 5 % for m below 6, whatever a
bootstrap of so few gives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from sdpo_mlx.core import statistics
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.evaluation.evaluate import EvalDocument

Z, POWER = 1.96, 0.84  # normal quantiles: of a 95 % interval, and of 80 % power
MIN_DIFFERENT = 6
ROUNDING = 1e-12  # a difference of scores below this is rounding


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
    """Second minus first over the shared problems (shares of 1, NaN if there is no problem to compare).

    `left_out` counts problems that only the first has, only the second has, or that differ under one id; `notes` name
    the conditions that differ.
    """

    pairs: tuple[Pair, ...]
    difference: float
    interval: statistics.Interval
    left_out: tuple[int, int, int]
    seed: int
    notes: tuple[str, ...] = ()
    sampled_differently: bool = False  # temperature, top_p or max_tokens differ

    @property
    def scores(self) -> tuple[Score, Score]:
        """Each side's score, with its interval clustered by problem: that of `Evaluation.interval`."""
        first, second = (
            Score(statistics.average(rows), *statistics.clustered(rows, seed=derive("bootstrap", self.seed)))
            for rows in ([[pair.first] for pair in self.pairs], [[pair.second] for pair in self.pairs])
        )
        return first, second

    @property
    def won(self) -> tuple[Pair, ...]:
        """Problems on which the second is better, the largest gain first."""
        return tuple(sorted((p for p in self.pairs if p.change > ROUNDING), key=lambda p: -p.change))

    @property
    def lost(self) -> tuple[Pair, ...]:
        """Problems on which the second is worse, the largest loss first."""
        return tuple(sorted((p for p in self.pairs if p.change < -ROUNDING), key=lambda p: p.change))

    @property
    def significant(self) -> bool:
        """Whether chance alone rarely makes such a difference."""
        return (self.interval.low > 0 or self.interval.high < 0) and self._different >= MIN_DIFFERENT

    @property
    def needed(self) -> int | None:
        """About how many more problems would show a difference of this size with 80 % power; None if unknown.

        ((1.96 + 0.84) s / d)^2 problems in all, s being the deviation of the paired differences, d their mean (at
        (1.96 s / d)^2 it would be a toss-up), and as many as bring `MIN_DIFFERENT` that differ; 0 if the difference
        is significant already.
        """
        if self.significant:
            return 0
        n = len(self.pairs)
        if n < 2 or abs(self.difference) < ROUNDING:
            return None
        spread = stdev(pair.change for pair in self.pairs)
        enough = max(((Z + POWER) * spread / self.difference) ** 2, MIN_DIFFERENT * n / self._different)
        return max(1, math.ceil(enough) - n)

    @property
    def _different(self) -> int:
        return len(self.won) + len(self.lost)

    def sentence(self) -> str:
        """Return in words whether the difference is significant."""
        caveat = " The two were sampled with different settings, and that alone may make a difference."
        return self._conclusion() + (caveat if self.sampled_differently else "")

    def _conclusion(self) -> str:
        n, (low, high) = len(self.pairs), self.interval
        if n < 2:
            return "One problem alone allows no conclusion: an interval needs at least two."
        if self.significant:
            return (
                f"The difference is significant: its 95 % interval, {100 * low:+.1f} to {100 * high:+.1f} points, "
                "excludes 0."
            )
        if self.needed is None:
            evenly = "gains and losses even out" if self._different else "no problem was won or lost"
            missed = f", which has a chance of 1 in 20 even if {1 - 0.05 ** (1 / n):.0%} of all such problems differ"
            return f"There is no difference: {evenly} over these {n} problems{'' if self._different else missed}."
        why = "its 95 % interval includes 0"
        if low > 0 or high < 0:
            few = f"all {n}" if self._different == n else f"{self._different} of {n}"
            why = f"{few} problems were won or lost, and with so few that may be chance"
        return (
            f"The difference is not significant: {why}. If it is as large as measured, about {self.needed:,} "
            f"more problems ({n + self.needed:,} in all) would show it with 80 % probability."
        )


def compare(first: EvalDocument, second: EvalDocument) -> Comparison:
    """Pair two evaluations by problem; raises DataError if they have no problem in common."""
    ours, theirs = ({each.id: each for each in side.scores.problems} for side in (first, second))
    both = [name for name in ours if name in theirs]
    # A file from another program may have no hashes.
    shared = [
        name
        for name in both
        if ours[name].sha256 == theirs[name].sha256 or not (ours[name].sha256 and theirs[name].sha256)
    ]
    if not shared:
        tasks = " and ".join(dict.fromkeys((first.task, second.task)))
        raise DataError(
            "the two evaluations have no problem in common", where=tasks, fix="evaluate both on the same task and data"
        )
    rewards = [{name: side[name].rewards for name in shared} for side in (ours, theirs)]
    found = compare_rewards(*rewards, seed=first.scores.seed)
    pairs = tuple(replace(pair, family=ours[pair.id].family) for pair in found.pairs)
    left_out = len(ours) - len(both), len(theirs) - len(both), len(both) - len(shared)
    differing = [
        name
        for name, value in first.conditions.items()
        if name in second.conditions and second.conditions[name] != value
    ]
    notes = tuple(
        f"{name} differs: {json.dumps(first.conditions[name])} and {json.dumps(second.conditions[name])}"
        for name in differing
    )
    differently = "sampling" in differing
    return replace(found, pairs=pairs, left_out=left_out, notes=notes, sampled_differently=differently)


def compare_rewards(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], *, seed: int
) -> Comparison:
    """Pair rewards by the id of their problem; problems of one side alone are left out. `seed` is that of the run."""
    shared = [name for name in first if name in second]
    rows = [[side[name] for name in shared] for side in (first, second)]
    difference, interval = statistics.paired(rows[0], rows[1], seed=derive("paired", seed))
    pairs = tuple(Pair(name, "", fmean(a), fmean(b)) for name, a, b in zip(shared, *rows, strict=True) if a and b)
    return Comparison(pairs, difference, interval, (len(first) - len(shared), len(second) - len(shared), 0), seed)
