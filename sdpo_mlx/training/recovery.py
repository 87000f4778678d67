"""What a run does after a process that ended without a word: it says so, and goes on with half as much at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdpo_mlx.backends.base import Policy, SamplingParams
from sdpo_mlx.core.errors import CrashedError
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.phase_marker import Crash, PhaseMarker

DOING = {"generate": "sampling", "learn": "learning"}
UNITS = {"generate": "rollouts", "learn": "tokens"}
SMALLEST = {"generate": 1, "learn": 64}  # below this, half as much saves nothing
CAUSE = "probably out of memory, or stopped by the GPU's watchdog; killed from outside looks the same"


class Recovery:
    """The crash marker of a run on a device where running out of memory or time ends the process.

    On others (`PolicyInfo.aborts` is false) nothing is noted, and a resumed run does what it did: a kill must not
    change its numbers.
    """

    def __init__(self, policy: Policy, folder: RunFolder, sampling: SamplingParams) -> None:
        self.policy, self.sampling, self.marker = policy, sampling, PhaseMarker(folder.path)
        self.aborts = policy.info.aborts

    def resume(self) -> str:
        """Apply what earlier crashes reduced; return one line on that and on the last process, blank if all went well.

        Raises CrashedError after the second crash in the same phase of the same step.
        """
        crash = self.marker.read()
        if not self.aborts:
            self.marker.remove()
            return ""
        for phase, size in self.marker.limits.items():
            self.policy.limit_pass(phase, size)
        if crash is None or crash.phase not in DOING:
            kept = [f"{size} {UNITS[phase]}" for phase, size in self.marker.limits.items() if phase in UNITS]
            return f"since an earlier crash this run has at most {' and '.join(kept)} at once" if kept else ""
        if crash.repeated:
            self.marker.note(crash, None)
            raise self._stop(crash)
        smaller = max(crash.size // 2, min(crash.size, SMALLEST[crash.phase]))
        self.marker.note(crash, smaller)
        self.policy.limit_pass(crash.phase, smaller)
        return (
            f"the last process ended while {DOING[crash.phase]} in step {crash.step + 1} ({CAUSE}): "
            f"from now on at most {smaller} {UNITS[crash.phase]} at once, it had {crash.size}"
        )

    def _stop(self, crash: Crash) -> CrashedError:
        what = f"the process ended again while {DOING[crash.phase]}, with {crash.size} {UNITS[crash.phase]} at once"
        smaller = "let the display sleep, and set memory.evaluation_gflop to half of what `sdpo plan` shows"
        fix = f"close other programs, {smaller}, or use a smaller model or shorter rollouts in another --out"
        return CrashedError(what, where=f"step {crash.step + 1}; {CAUSE}", fix=f"{fix}; this command tries again")

    @contextmanager
    def phase(self, name: str, step: int, most: int | None = None) -> Iterator[None]:
        """Note a phase (`generate` or `learn`) after so many completed steps, while the block runs.

        `most` is what there is to do in all, in rollouts or tokens, if that is known: half of more would be as much.
        """
        if not self.aborts:
            yield
            return
        size = self.policy.pass_sizes(self.sampling)[name]
        with self.marker.during(name, step, size if most is None else max(1, min(size, most))):
            yield

    def unless(self, interrupted: Callable[[], bool]) -> Callable[[], bool]:
        """See `PhaseMarker.unless`."""
        return self.marker.unless(interrupted) if self.aborts else interrupted

    def finish(self) -> None:
        """Forget crashes and limits, at the end of a run."""
        if self.aborts:
            self.marker.remove()
