"""SDPO in one file: `python examples/minimal_loop.py` trains the embedded model on its task in about a minute.

Each step does five things, in the order of `main`:

1. sample several rollouts per problem;
2. grade every rollout, with text feedback on what was wrong;
3. build teacher contexts: the *self-teacher* is the same model, prompted with a demonstration (another successful
   rollout of the problem) or with the feedback;
4. distil: on the tokens of its own rollout the student learns to predict what the self-teacher predicts;
5. update the teacher: its weights are a moving average of the student's.

Left out, compared with `sdpo train`: checkpoints and resume, run folder and events, limits for long contexts, GRPO and
hybrid, several optimizer steps per batch, early stopping, warnings, interruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from sdpo_mlx.backends.base import Policy, SamplingParams
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.evaluation.evaluate import evaluate
from sdpo_mlx.evaluation.spec import EvalSpec
from sdpo_mlx.models import resolve
from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.rl.rollouts import Sampler, rollout_seeds, sample
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.tiny.task import TinyTask
from sdpo_mlx.teacher import teacher_context
from sdpo_mlx.types import DistillSample, RolloutGroup

PROBLEMS, GROUP_SIZE = 8, 8  # per step
MODEL = ModelConfig(name="tiny", adapter=AdapterConfig(rank=8))
TEACHER = TeacherConfig(kind="ema", update_rate=0.01)
OBJECTIVE = ObjectiveConfig(kind="sdpo", alpha=0.5, support="full")
TRAIN = TrainConfig(learning_rate=5e-3, weight_decay=0.0)


def main() -> None:
    """Train; print the success rate on held-out problems before and after."""
    options = _options()
    task = TinyTask()
    model = resolve.resolve(MODEL.name)
    chat = load_chat(model.path)
    policy = open_policy(model.path, MODEL, TEACHER, TRAIN)
    sampling = SamplingParams(max_tokens=48, temperature=1.0, top_p=1.0, eos_ids=chat.eos_ids)
    sampler = Sampler(task.problems("train"), PROBLEMS, options.seed)

    print(f"held-out success before: {held_out_score(policy, task, chat, sampling, options):.3f}")
    for step in range(options.steps):
        problems = sampler.batch(step)
        seeds = rollout_seeds("rollout", options.seed, step, problems, GROUP_SIZE)
        groups = sample(policy, task, chat, problems, sampling, seeds).groups
        samples = distillation_samples(groups, chat, derive(options.seed, step))
        update = policy.learn(samples, OBJECTIVE, TRAIN.learning_rate, temperature=sampling.temperature)
        if update.applied:  # a step without a signal changes nothing
            policy.update_teacher(TEACHER)
        rate = np.mean([group.pass_rate for group in groups])
        print(f"step {step + 1:2}  success {rate:.3f}  learned from {len(samples):2}  loss {update.loss:.4f}")
    print(f"held-out success after:  {held_out_score(policy, task, chat, sampling, options):.3f}")


def distillation_samples(groups: Sequence[RolloutGroup], chat: Chat, seed: int) -> list[DistillSample]:
    """Return one sample for each rollout that has a teacher context.

    Both sequences are a prompt followed by the sampled ids, so their spans hold the same tokens.
    """
    samples = []
    for group in groups:
        for index, rollout in enumerate(group.rollouts):
            context = teacher_context(group, index, TEACHER, seed)
            if context is None:
                continue
            prompt = chat.render(context.messages)
            student_ids = np.concatenate([rollout.prompt_ids, rollout.ids_T])
            teacher_ids = np.concatenate([prompt, rollout.ids_T])
            samples.append(
                DistillSample(
                    problem_id=group.problem.id,
                    index=index,
                    student_ids=student_ids,
                    student_span=(rollout.prompt_ids.size, student_ids.size),
                    teacher_ids=teacher_ids,
                    teacher_span=(prompt.size, teacher_ids.size),
                    rollout_logps_T=rollout.logps_T,
                )
            )
    return samples


def held_out_score(
    policy: Policy, task: Task, chat: Chat, sampling: SamplingParams, options: argparse.Namespace
) -> float:
    """Return the success rate of four rollouts per held-out problem, always with the same seeds."""
    problems = task.problems("held_out")[: options.held_out]
    return evaluate(policy, task, chat, EvalSpec(problems, sampling, 4, options.seed)).score


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="SDPO on the embedded model.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=64, help="problems to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
