"""Rollout groups with given answers and feedback, and the distillation batch made from them."""

from functools import cache

import numpy as np
from small_tokenizers import folder

from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.types import Feedback, Problem, Rollout, RolloutGroup

SDPO, GRPO, HYBRID = (ObjectiveConfig(kind=kind) for kind in ("sdpo", "grpo", "hybrid"))
QUESTION = "Write f(x): sort, reverse"


@cache
def chat(name="tiny"):
    return load_chat(folder(name))


def group(*answers, problem="p", name="tiny", system="Be brief."):
    """Each answer is (text, success, feedback text[, kind])."""
    made = chat(name)
    messages = ({"role": "system", "content": system}, {"role": "user", "content": QUESTION})
    prompt = made.render(messages)
    rollouts, feedback = [], []
    for seed, (text, success, said, *kind) in enumerate(answers):
        ids = np.array(made.encode_plain(text), dtype=np.int32)
        rollouts.append(Rollout(prompt, ids, np.full(ids.size, -1.0, np.float32), "stop", seed, text))
        feedback.append(Feedback(float(success), success, said, kind[0] if kind else "pass" if success else "wrong"))
    return RolloutGroup(Problem(problem, messages), tuple(rollouts), tuple(feedback))


def batch(groups, objective=SDPO, *, name="tiny", length=4_096, **teacher):
    return distillation_batch(groups, chat(name), TeacherConfig(**teacher), objective, context_length=length, seed=3)


def prompt_of(sample, name="tiny"):
    return chat(name)._backend.decode(sample.teacher_ids[: sample.teacher_span[0]].tolist(), skip_special_tokens=False)


def reasons(made):
    return {skip.index: skip.reason for skip in made.skips}
