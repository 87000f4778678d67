"""Python problems: an answer's program is run in a sandbox and graded outside of it.

Tests marked public run in a separate process, before the others: whatever a program prints about them
cannot contain anything of the hidden tests, whose inputs it has not seen by then.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.hardware import total_memory
from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.code.extract import extract_code
from sdpo_mlx.tasks.code.feedback import FEEDBACK_MODES, failure_text, no_program_text
from sdpo_mlx.tasks.code.formats.detect import problem_from_any
from sdpo_mlx.tasks.code.half_tests import with_half_tests
from sdpo_mlx.tasks.code.problem_folder import is_problem, row_of
from sdpo_mlx.tasks.code.runner import Program, Test, TestOutcome, Turnstile, run_tests
from sdpo_mlx.tasks.dataset import feedback_mode, load_rows, with_splits
from sdpo_mlx.types import Feedback, FeedbackKind, Problem

if TYPE_CHECKING:
    from sdpo_mlx.models.chat_template import Chat

_REMEMBERED = 4_096
_WAITS = 36.0  # four runs of an answer, and eight of neighbours that run alone, each for three times its limit at most
_PRIVATE = ("entry", "preamble", "setup", "test_seconds", "memory_mb")  # of a problem, besides its tests
LEVELS = ("one_liner", "easy", "medium", "interview")  # `code:easy` holds the levels up to easy
Verdict = tuple[tuple[TestOutcome, ...], tuple[TestOutcome, ...]]  # tests that may be told, hidden tests


class CodeTask(Task):
    """Write a Python program; all its tests must pass."""

    name = "code"
    description = "Python problems, tests run in a sandbox"
    feedback_modes = FEEDBACK_MODES

    def __init__(self, sandbox: Sandbox, cfg: TaskConfig | None = None, level: str = "") -> None:
        """`cfg.data`: rows as in `formats/`, or the folder of one problem (`problem_folder.py`);
        None for the shipped ones. `cfg.feedback`: None for `public`. `cfg.tests`: see `half_tests.py`.

        `level` keeps the problems up to that level. Raises ConfigError for an unknown mode or level, DataError
        for bad rows.
        """
        cfg = cfg or TaskConfig(name=self.name)
        if level and level not in LEVELS:
            raise ConfigError(f"code has no level {level!r}", where="task.name", fix=f"choose {', '.join(LEVELS)}")
        self.feedback = feedback_mode(self.name, cfg.feedback, FEEDBACK_MODES)
        self._sandbox = sandbox
        levels = LEVELS[: LEVELS.index(level) + 1] if level else None
        if cfg.data is not None and is_problem(Path(cfg.data)):
            problems = [problem_from_any(row_of(Path(cfg.data)), cfg.data)]
        else:
            problems = load_rows(cfg, "code/problems.jsonl", problem_from_any)
        problems = with_half_tests(problems) if cfg.tests == "half" else with_splits(problems)
        self.rows = [p for p in problems if levels is None or p.private["level"] in levels]
        limits = getattr(sandbox, "limits", None)
        if limits is not None and any(problem.private["test_seconds"] for problem in self.rows):
            self.grading_seconds = max(self.grading_seconds, _WAITS * limits.total_seconds)
        self._memory_mb = total_memory() >> 20
        self._turnstile = Turnstile()
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Return reward 1 when all tests pass, else 0 with the reason in words; raises when the sandbox fails."""
        code = extract_code(text, truncated=truncated)
        if code is None:
            return self._failed("invalid", no_program_text(truncated))
        tests: Sequence[Test] = problem.private["tests"]
        visible = [test for test in tests if test["public"] or self.feedback == "full"]  # `full` hides nothing
        hidden = [test for test in tests if not (test["public"] or self.feedback == "full")]
        outcomes = self._verdict(problem, code, visible, hidden)
        kind = _kind(outcomes[0] + outcomes[1])
        if kind == "pass":
            return Feedback(1.0, True, "", "pass")
        cases, entry = self.feedback in ("public", "full"), problem.private["entry"]
        return self._failed(kind, failure_text(visible, outcomes[0], entry, cases=cases, truncated=truncated))

    def notes(self, problem: Problem) -> tuple[str, ...]:
        """Return how many tests a problem has, and their limits."""
        tests, limits = problem.private["tests"], getattr(self._sandbox, "limits", None)
        public = sum(test["public"] for test in tests)
        counted = f"tests: {len(tests)}, of which {public} may be quoted in the feedback"
        if limits is None:
            return (counted,)
        program = self._program(problem, "")
        memory = f"{max(program.memory_mb or 0, limits.memory_mb):,} MB"
        if program.test_seconds is None:
            return counted, f"limits: {limits.seconds:g} s of processor time for all tests of a run, {memory}"
        most = max(program.test_seconds, limits.total_seconds)
        each = f"{program.test_seconds:g} s of processor time for each test, {most:g} s for all tests of a run"
        return counted, f"limits: {each}, {memory}"

    def warnings(self, _chat: Chat) -> tuple[str, ...]:
        """Return a line if this machine has less memory than the data set allows its programs."""
        wanted = max((problem.private["memory_mb"] or 0 for problem in self.rows), default=0)
        if wanted <= self._memory_mb:
            return ()
        most = f"{self._memory_mb:,} MB of memory, so that is what a program gets"
        return (f"the data set allows {wanted:,} MB for a program; this machine has {most}",)

    def _failed(self, kind: FeedbackKind, text: str) -> Feedback:
        return Feedback(0.0, False, "" if self.feedback == "none" else text, kind)

    def _program(self, problem: Problem, code: str) -> Program:
        program = Program(code, **{name: problem.private[name] for name in _PRIVATE})
        if program.memory_mb is None:
            return program
        return replace(program, memory_mb=min(program.memory_mb, self._memory_mb))

    def _verdict(self, problem: Problem, code: str, visible: list[Test], hidden: list[Test]) -> Verdict:
        """Run, or return the remembered result: equal programs on one problem get equal results."""
        program = self._program(problem, code)
        parts = [problem.id, asdict(program), problem.private["tests"]]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                return self._verdicts[key]
        first = run_tests(self._sandbox, self._turnstile, program, visible) if visible else ()
        rest: tuple[TestOutcome, ...] = (TestOutcome("not_run"),) * len(hidden)
        if hidden and _kind(first) == "pass":  # otherwise hidden tests could not change the failure
            rest = run_tests(self._sandbox, self._turnstile, program, hidden)
        verdict = first, rest
        with self._lock:
            self._verdicts[key] = verdict
            while len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
        return verdict


def _kind(outcomes: Sequence[TestOutcome]) -> FeedbackKind:
    """Pass when every test passed, otherwise the worst result: error, timeout, wrong."""
    verdicts = {outcome.verdict for outcome in outcomes}
    for verdict in ("error", "timeout", "wrong"):
        if verdict in verdicts:
            return verdict
    return "pass" if verdicts <= {"pass"} else "wrong"
