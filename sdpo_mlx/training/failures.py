"""Failures that stop a run: counters of updates that are not finite, grader errors, and prompts that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sdpo_mlx.backends.base import Update
from sdpo_mlx.core.errors import DataError, DivergedError, SdpoError
from sdpo_mlx.types import RolloutGroup, Skip

NON_FINITE_STEPS = 5
GRADER_ERRORS_IN_A_ROW = 20
GRADER_WINDOW, GRADER_ENOUGH, GRADER_SHARE = 256, 100, 0.10
PROMPTS_ENOUGH, TOO_LONG_SHARE = 40, 0.05


@dataclass(frozen=True)
class FailureCheck:
    """Warnings to emit, and the error to raise (after saving) if the run should stop."""

    warnings: tuple[str, ...] = ()
    stop: SdpoError | None = None


@dataclass
class FailureMonitor:
    """Counters over steps. They are in checkpoints under these names, so that a resumed run warns exactly the same."""

    non_finite: int = 0
    non_finite_total: int = 0
    grader_in_a_row: int = 0
    grader_window: list[int] = field(default_factory=list)  # 1: the grader failed; the latest is last
    grader_said: str = ""  # first line of the latest grader error
    prompts: int = 0
    prompts_too_long: int = 0

    def observe(self, groups: Sequence[RolloutGroup], skips: Sequence[Skip], update: Update | None) -> FailureCheck:
        """Count one step; `update` is None if there was nothing to learn from.

        `skips` include the prompts that were too long to be sampled.
        """
        warnings = self._see_update(update)
        for each in (each for group in groups for each in group.feedback):
            failed = each.kind == "grader_error"
            self.grader_said = each.text.partition("\n")[0] if failed else self.grader_said
            self.grader_in_a_row = self.grader_in_a_row + 1 if failed else 0
            self.grader_window.append(int(failed))
            if self.grader_in_a_row >= GRADER_ERRORS_IN_A_ROW:
                break  # later successes must not hide the failures
        del self.grader_window[:-GRADER_WINDOW]
        too_long = {skip.problem_id for skip in skips if skip.reason == "too_long"}
        self.prompts += len({group.problem.id for group in groups} | too_long)
        self.prompts_too_long += len(too_long)
        stop = self._stop(update)
        if stop is not None:  # a run that is resumed after a stop has been fixed, and starts without failures
            self.non_finite = self.grader_in_a_row = self.prompts = self.prompts_too_long = 0
            self.grader_window = []
        return FailureCheck(warnings, stop)

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, counters: Mapping[str, Any]) -> FailureMonitor:
        """Read what `to_dict` returned; names of other versions are ignored."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in counters.items() if name in known})

    def _see_update(self, update: Update | None) -> tuple[str, ...]:
        if update is None or not (update.non_finite or update.reason == "non_finite"):
            self.non_finite = 0
            return ()
        self.non_finite += 1
        self.non_finite_total += 1
        named = f" (problems {', '.join(update.non_finite[:5])})" if update.non_finite else ""
        return (
            f"loss or gradient was not finite{named}: the update was skipped, "
            f"{self.non_finite} in a row, {self.non_finite_total} in total",
        )

    def _stop(self, update: Update | None) -> SdpoError | None:
        if self.non_finite >= NON_FINITE_STEPS:
            names = ", ".join(update.non_finite[:5]) if update else ""
            return DivergedError(
                f"loss or gradient was not finite in {self.non_finite} steps in a row",
                where=f"problems {names}" if names else "",
                fix="lower train.learning_rate or train.clip_norm; the state before is saved",
            )
        failures, seen = sum(self.grader_window), len(self.grader_window)
        if self.grader_in_a_row >= GRADER_ERRORS_IN_A_ROW:
            return _grader_stop(f"the grader failed {self.grader_in_a_row} times in a row", self.grader_said)
        if seen >= GRADER_ENOUGH and failures > GRADER_SHARE * seen:
            return _grader_stop(f"the grader failed on {failures} of the last {seen} rollouts", self.grader_said)
        if self.prompts >= PROMPTS_ENOUGH and self.prompts_too_long > TOO_LONG_SHARE * self.prompts:
            return DataError(
                f"{self.prompts_too_long} of {self.prompts} prompts were too long",
                fix="remove the long problems, raise teacher.max_context_tokens, "
                "or choose a model with a longer context",
            )
        return None


def _grader_stop(what: str, error: str) -> DataError:
    fix = "fix it, test it with `sdpo tasks check`, and run the same command again to resume"
    return DataError(f"{what}, last with: {error}", fix=fix)
