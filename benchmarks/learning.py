"""Measure one learning run: held-out success against the number of rollouts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_mlx import trainer
from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.evaluation.evaluate import evaluate
from sdpo_mlx.evaluation.forgetting import reference
from sdpo_mlx.evaluation.spec import eval_spec
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl import components as run_components
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.distillation import Batch, distillation_batch
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.teacher import teacher_messages
from sdpo_mlx.training.session import TrainingSession
from sdpo_mlx.types import RolloutGroup


@dataclass(frozen=True)
class Measured:
    """A run's curve of (step, rollouts, score, low, high) per evaluation, and the score of the best adapter.

    `divergence` from the base on general prompts, in nats per token, is measured at every evaluation.
    """

    label: str
    seed: int
    curve: list[tuple[int, int, float, float, float]]
    best_step: int
    final: dict[str, Any]
    seconds: float
    changed: bool
    divergence: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dictionary."""
        return asdict(self)


def measure(
    label: str,
    settings: Sequence[str],
    seed: int,
    *,
    swapped: bool = False,
    enough: float = 2.0,
    final_samples: int | None = None,
    change: Callable[[Components], None] = lambda _: None,
) -> Measured:
    """Train once in a temporary folder; `swapped` gives the teacher the contexts of other problems.

    Training stops early after an evaluation with a score of at least `enough`. The final score takes `final_samples`
    answers per problem, None: as many as the evaluations during training.
    `change` edits the components before the first rollout.
    """
    cfg = resolve(None, [*settings, f"train.seed={seed}"], {}).config
    setup, begun = build_components(cfg), time.perf_counter()
    change(setup)
    before = {name: array.copy() for name, array in setup.policy.state()["student"].items()}
    curve, divergence, total, training = [], list[float](), 0, True

    def observe(event: Mapping[str, Any], _groups: Sequence[RolloutGroup]) -> None:
        nonlocal total
        total = event.get("generations/total", total)
        if event["type"] == "eval":
            curve.append((event["step"], total, event["score"], event["low"], event["high"]))
            divergence.append(event["forgetting/divergence"])

    with tempfile.TemporaryDirectory() as folder, RunFolder.open(Path(folder, "run")) as place, _contexts(swapped):
        run = TrainingSession(setup, place, observe, lambda: training and bool(curve) and curve[-1][2] >= enough)
        run.reference = reference(setup.policy, setup.chat)
        try:
            best_step = trainer.train(run, run.resume()).best_step
        except KeyboardInterrupt:
            best_step = curve[-1][0]
        training = False
        after = setup.policy.state()["student"]
        changed = any(not np.array_equal(before[name], after[name]) for name in before)
        setup.policy.load_student(place.load_adapter()[0])
        spec = eval_spec(setup, "final")
        spec = replace(spec, samples=final_samples or spec.samples)
        final = evaluate(setup.policy, setup.task, setup.chat, spec).event()
    return Measured(label, seed, curve, best_step, final, time.perf_counter() - begun, changed, divergence)


def generations_until(measured: Mapping[str, Any], target: float) -> int | None:
    """Return the number of rollouts until the first evaluation at or above `target`; None if there is none."""
    return next((int(point[1]) for point in measured["curve"] if point[2] >= target), None)


@contextmanager
def _contexts(swapped: bool) -> Iterator[None]:
    """Control: combine demonstration and feedback of the next problem with this problem's prompt."""
    if not swapped:
        yield
        return

    def other(groups: Sequence[RolloutGroup], chat: Chat, teacher: TeacherConfig, **options: Any) -> Batch:
        batch = distillation_batch(groups, chat, teacher, **options)
        return replace(batch, samples=tuple(_swapped_samples(batch, groups, chat, teacher)))

    run_components.distillation_batch = other  # type: ignore[assignment]
    try:
        yield
    finally:
        run_components.distillation_batch = distillation_batch


def _swapped_samples(batch: Batch, groups: Sequence[RolloutGroup], chat: Chat, teacher: TeacherConfig) -> Iterator[Any]:
    names = [group.problem.id for group in groups]
    messages = {group.problem.id: group.problem.messages for group in groups}
    by_problem = {name: [c for (problem, _), c in batch.contexts.items() if problem == name] for name in names}
    for sample in batch.samples:
        at = names.index(sample.problem_id)
        given = next((found for n in (*names[at + 1 :], *names[:at]) if (found := by_problem[n])), None)
        if not sample.distil_weight:  # kind `auto` without distillation, or a success that is not distilled
            yield sample
            continue
        if given is None:
            continue
        context = given[sample.index % len(given)]
        shown = context.demonstration.text if context.demonstration else None
        prompt = chat.render(teacher_messages(messages[sample.problem_id], shown, context.feedback, None, teacher))
        ids = np.concatenate([prompt, sample.ids_T])
        yield replace(sample, teacher_ids=ids, teacher_span=(prompt.size, ids.size))
