"""SDPO (arXiv 2601.20802) as one loop: sample, grade, build the self-teacher's view, distil, move the teacher.

The policy answers each problem several times; the environment grades the answers and says what went wrong; the
same model, shown a successful sibling answer or that feedback, is the self-teacher; its next-token distribution on
the original answer's tokens is what the policy learns. The mathematics is in `objective.py`, the contexts are in
`teacher.py`, the tensors behind `backends/base.py`; what a run writes and remembers is in `run.py`.

Left out on purpose: replay of rollouts from earlier steps. On several machines this loop runs on the first one, and
the others do their share of what its policy is asked (`backends/distributed.py`).
"""

from __future__ import annotations

import time

from sdpo_mlx.core.errors import RankLostError
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.optimization import learn
from sdpo_mlx.rl.rollouts import Sampler, sample
from sdpo_mlx.training.session import Clock, TrainingSession, TrainState


def train(run: TrainingSession, state: TrainState) -> TrainState:
    """Go on from `state` until `train.steps` or until patience ends; the last whole step is saved in any case.

    Raises KeyboardInterrupt or RankLostError after saving, DivergedError or DataError when the run must stop.
    """
    cfg, policy, task, chat = run.cfg, run.policy, run.task, run.chat
    context_length = policy.info.context_length
    sampler = Sampler(task.problems("train"), cfg.rollout.problems_per_step, cfg.train.seed)
    try:
        state = run.evaluated(state)
        while state.step < cfg.train.steps and not run.out_of_patience(state):
            step, begun = state.step, time.perf_counter()
            # 1. Problems, a pure function of (seed, step); 2. answers, graded while others are still generated.
            problems = sampler.batch(step)
            sampled = sample(run.writer, task, chat, problems, run.sampling, run.seeds(step, problems), run.interrupted)
            # 3. What the self-teacher sees for each answer; every answer becomes a sample or a Skip with its reason.
            seed = derive(cfg.train.seed, step)
            batch = distillation_batch(
                sampled.groups, chat, cfg.teacher, cfg.objective, context_length=context_length, seed=seed
            )
            run.look(step, sampled.groups, batch.samples)  # for the report
            # 4. Distil; 5. move the teacher. Where nothing can be learned, not one byte changes.
            run.doing("learning")
            clock = Clock(begun, time.perf_counter())
            learned = learn(policy, batch.samples, cfg, step, run.interrupted)
            # 6. Events and warnings, held-out score, best adapter, checkpoint.
            state = run.after(state, sampled, batch, learned, clock)
            state = run.evaluated(state)
            run.save_if_due(state)
    except (KeyboardInterrupt, RankLostError):
        run.save(state)
        raise
    run.save(state)
    return state
