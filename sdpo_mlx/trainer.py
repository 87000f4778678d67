"""SDPO (arXiv 2601.20802) as one loop: sample, grade, build teacher contexts, distil, update the teacher.

The policy samples a group of rollouts per problem; the environment grades them and returns feedback. The same model,
prompted with a successful sibling rollout and/or that feedback, is the self-teacher. Its next-token distribution on
the original tokens is what the policy learns. The mathematics is in `objective.py`, the contexts are in `teacher.py`,
the tensors behind `backends/base.py`; what a run writes is in `training/session.py`.

Left out on purpose: replay of rollouts from earlier steps. On several machines this loop runs on rank 0; the other
ranks do their share of what its policy is called for (`backends/distributed/policy.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sdpo_mlx.core.errors import RankLostError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.optimization import learn
from sdpo_mlx.rl.rollouts import Sampler, sample
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training import final_scores
from sdpo_mlx.training.final_scores import TrainingResult
from sdpo_mlx.training.session import OnEvent, StepClock, TrainingSession, TrainState


def train(run: TrainingSession, state: TrainState) -> TrainState:
    """Train from `state` until `train.steps`, or until patience ends or the score declines.

    The last whole step is saved in any case; after an error, unless its weights have already changed.
    Raises KeyboardInterrupt or RankLostError after saving, DivergedError or DataError if the run must stop.
    """
    cfg, policy, task, chat = run.cfg, run.components.policy, run.components.task, run.components.chat
    sampling = run.components.sampling
    sampler = Sampler(task.problems("train"), cfg.rollout.problems_per_step, cfg.train.seed)
    try:
        state = run.evaluate_if_due(state)
        run.save_start(state)
        while state.step < cfg.train.steps and not run.is_over(state):
            step, begun = state.step, time.perf_counter()
            # 1. Problems, a pure function of (seed, step). 2. Rollouts, graded while others are still generated.
            problems = sampler.batch(step)
            seeds = run.seeds(step, problems)
            with run.phase("generate", sum(map(len, seeds))):
                sampled = sample(run.generator, task, chat, problems, sampling, seeds, run.interrupted)
            # 3. Teacher contexts; every rollout becomes a sample or a Skip with its reason.
            state = run.probe_once(state, sampled.groups)
            with run.phase("learn"):  # objective `auto` scores some rollouts
                batch = run.components.distillation_batch(sampled.groups, step, state.agreements)
            run.record_diagnostics(step, sampled.groups, batch.samples)
            # 4. Distil. 5. Update the teacher. If nothing can be learned, no byte of the state changes.
            run.start_task("learning")
            clock = StepClock(begun, time.perf_counter())
            tokens = sum(max(each.student_ids.size, each.teacher_ids.size) for each in batch.samples)
            with run.phase("learn", tokens):
                learned = learn(policy, batch.samples, run.settings(state), step, run.interrupted)
            # 6. Events and warnings, held-out score, best adapter or rollback, checkpoint.
            state = run.record_step(state, sampled, batch, learned, clock)
            state = run.evaluate_if_due(state)
            run.save_if_due(state)
    except (KeyboardInterrupt, RankLostError):
        run.save(state)
        raise
    except Exception:
        run.save_after_error(state)
        raise
    run.save(state)
    return state


def fit(
    components: Components,
    folder: RunFolder,
    on_event: OnEvent,
    interrupted: Callable[[], bool] = lambda: False,
    *,
    command: Sequence[str] = (),
    start_task: StartTask = no_tasks,
) -> TrainingResult:
    """Start or resume the run in `folder`, train to the end, score before and after, write the model card.

    Raises KeyboardInterrupt with the state saved, and what `TrainingSession.resume` and `train` raise.
    """
    run = TrainingSession(components, folder, on_event, interrupted, start_task)
    try:
        state = run.resume()
        # Not earlier: if changed settings are refused, the old run's files must stay as they are.
        folder.write_manifest(components.manifest(command))
        folder.write_config(components.requested)
        before = final_scores.before_training(run, state)
        run.reference = final_scores.forgetting_reference(run, state)
        state = train(run, state)
        result = final_scores.finish(run, state, before)
        run.recovery.finish()
        return result
    finally:
        run.close()
