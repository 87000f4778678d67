"""Call a task's grader safely: whatever a grader raises is `grader_error`, never a grade on the model."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from sdpo_mlx.core.text import FEEDBACK_LIMIT, clean
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Feedback, Problem, Rollout

GRADER_THREADS = 8
FEEDBACK_ERROR_LENGTH = 1_000_000  # characters; a grader that writes more is broken
POLL_SECONDS = 0.2  # how often waiting for a grade checks for signals and for graders that hang

Response = Feedback | str  # a grade, which ends the episode, or a reply, after which it continues


def grade(task: Task, problem: Problem, text: str, *, earlier: Sequence[str] = (), truncated: bool = False) -> Feedback:
    """Return the task's grade; an exception in the grader or a reward that is not finite is `grader_error`.

    `earlier` are the episode's answers before `text`; a task with `grade_turns` grades them all.
    """
    try:
        given = task.grade_turns(problem, (*earlier, text), truncated=truncated)
        if len(given.text) > FEEDBACK_ERROR_LENGTH:
            raise ValueError(f"the grader's feedback has {len(given.text):,} characters")
        reward, success, feedback = float(given.reward), bool(given.success), clean(given.text, FEEDBACK_LIMIT)
        kind = given.kind
    except (Exception, SystemExit) as error:  # the one boundary: a grader's fault is never the model's
        return _failed(error)
    if not math.isfinite(reward):
        return Feedback(0.0, False, "the reward is not a finite number", "grader_error")
    return Feedback(reward, success, feedback, kind)


def respond(task: Task, problem: Problem, rollout: Rollout, *, over: bool = False) -> Response:
    """Return the environment's response to the latest answer: a reply if the episode continues, otherwise a grade.

    `over` means that no further turn is possible. A reply that fails ends the episode as `grader_error`.
    """
    answers, truncated = rollout.answers, rollout.finish == "length"
    try:
        if not over and not truncated and len(answers) < task.max_turns:
            text: object = task.reply(problem, answers)
            if isinstance(text, str):
                return clean(text, FEEDBACK_LIMIT)
            if text is not None:
                raise TypeError(f"a reply is text or None, not {type(text).__name__}")
    except (Exception, SystemExit) as error:
        return _failed(error)
    return grade(task, problem, answers[-1], earlier=answers[:-1], truncated=truncated)


def _failed(error: BaseException) -> Feedback:
    where = f" ({', '.join(notes)})" if (notes := getattr(error, "__notes__", ())) else ""
    return Feedback(0.0, False, f"{clean(f'{type(error).__name__}: {error}', 500)}{clean(where, 500)}", "grader_error")


class Graders:
    """Grade on a few daemon threads: a grader that hangs loses its own grade and never stops the run.

    The time limit of each answer starts when its grading does, so that a long queue causes no timeout.
    """

    def __init__(self, task: Task, seconds: float | None = None) -> None:
        self.task, self.seconds = task, task.grading_seconds if seconds is None else seconds
        self._slots = threading.Semaphore(min(os.cpu_count() or 1, GRADER_THREADS))
        self._lock = threading.Lock()
        self._started: dict[Future[Response], float] = {}

    def submit(self, problem: Problem, rollout: Rollout, *, over: bool = False) -> Future[Response]:
        """Start grading (or replying, unless the episode is `over`) as soon as a thread is free."""
        future: Future[Response] = Future()

        def run() -> None:
            self._slots.acquire()
            with self._lock:
                self._started[future] = time.monotonic()
            self._finish(future, respond(self.task, problem, rollout, over=over))

        threading.Thread(target=run, daemon=True).start()
        return future

    def result(self, future: Future[Response], interrupted: Callable[[], bool] = lambda: False) -> Response:
        """Return the response, `grader_error` if it times out. Raises KeyboardInterrupt if `interrupted()`."""
        while True:
            if interrupted():
                raise KeyboardInterrupt
            try:
                return future.result(timeout=min(self.seconds, POLL_SECONDS))
            except TimeoutError:
                self._expire()

    def _expire(self) -> None:
        """Give up every answer that is over its time limit; its thread is lost, so its slot is freed."""
        with self._lock:
            late = [f for f, start in self._started.items() if time.monotonic() - start >= self.seconds]
        for future in late:
            text = f"the grader took over {self.seconds:g} seconds"
            self._finish(future, Feedback(0.0, False, text, "grader_error"))

    def _finish(self, future: Future[Response], response: Response) -> None:
        with self._lock:
            if self._started.pop(future, None) is None:
                return
        self._slots.release()
        future.set_result(response)
