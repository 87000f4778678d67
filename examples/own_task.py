"""A task of one's own: one class, two methods. `python examples/own_task.py` trains on it for a few steps.

The task here teaches a habit rather than a skill: answer `Write f(x): sort, reverse` in the embedded model's
little language, but call each module by the name that a house style asks for. What the model writes is only
read, never executed, so no sandbox is needed. For programs that have to run, see `--task code`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import numpy as np

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import AdapterConfig, Config, ModelConfig, ObjectiveConfig, TrainConfig
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models import resolve
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.optimization import learn
from sdpo_mlx.rl.rollouts import Sampler, rollout_seeds, sample
from sdpo_mlx.tasks.base import Split, Task
from sdpo_mlx.types import Feedback, Problem

HOUSE_STYLE = {
    "sort": "order",
    "reverse": "invert",
    "dedupe": "distinct",
    "double": "times",
    "negate": "opposite",
    "square": "squared",
}
LINE = re.compile(r"x = (\w+)\.(\w+)\(x\)")


class HouseStyle(Task):
    """Programs of two lines that must use the house's names."""

    name = "house-style"
    description = "two operations, each by the name that our style guide asks for"
    feedback_modes = ("every line",)

    def problems(self, split: Split) -> Sequence[Problem]:
        """Every ordered pair of different operations; each fifth one is held out."""
        pairs = [(first, second) for first in HOUSE_STYLE for second in HOUSE_STYLE if first != second]
        chosen = [pair for number, pair in enumerate(pairs) if (number % 5 == 0) == (split == "held_out")]
        return [
            Problem(
                id=f"{first}-{second}",
                messages=({"role": "user", "content": f"Write f(x): {first}, {second}"},),
                private={"modules": (first, second)},  # only the grader sees this
            )
            for first, second in chosen
        ]

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Right where each line calls its module by the house's name; the feedback goes through every line.

        A sentence about each line, the good ones too, is what a self-teacher learns most from.
        """
        wanted = problem.private["modules"]
        lines = text.strip().splitlines()
        if truncated or len(lines) != len(wanted):
            return Feedback(0.0, False, f"expected {len(wanted)} lines, got {len(lines)}", "invalid")
        said = [self._about(line, module) for line, module in zip(lines, wanted, strict=True)]
        report = "\n".join(f"line {number}: {line}" for number, line in enumerate(said, 1))
        if all(line.startswith("ok") for line in said):
            return Feedback(1.0, True, "", "pass")
        return Feedback(0.0, False, report, "wrong")

    def _about(self, line: str, module: str) -> str:
        found, right = LINE.fullmatch(line), HOUSE_STYLE[module]
        if found is None:
            return f"SyntaxError: {line}"
        if found.groups() == (module, right):
            return f"ok: {line}"
        name = found[2]
        return f"AttributeError: {line}: module '{module}' has no attribute '{name}'. Did you mean: {module}.{right}?"


def main() -> None:
    """Train the embedded model on the task above through the same parts that `sdpo train` uses."""
    options = _options()
    cfg = Config(
        model=ModelConfig(name="tiny", adapter=AdapterConfig(rank=8)),
        objective=ObjectiveConfig(support="full"),
        train=TrainConfig(steps=options.steps, learning_rate=5e-3, weight_decay=0.0),
    )
    task = HouseStyle()
    model = resolve.resolve(cfg.model.name)
    chat = load_chat(model.path)
    policy = open_policy(model.path, cfg.model, cfg.teacher, cfg.train)
    sampling = SamplingParams(max_tokens=32, temperature=1.0, top_p=1.0, eos_ids=chat.eos_ids)
    sampler = Sampler(task.problems("train"), size=8, seed=cfg.train.seed)

    for step in range(cfg.train.steps):
        problems = sampler.batch(step)
        seeds = rollout_seeds("rollout", cfg.train.seed, step, problems, 8)
        sampled = sample(policy, task, chat, problems, sampling, seeds)
        batch = distillation_batch(
            sampled.groups,
            chat,
            cfg.teacher,
            cfg.objective,
            context_length=policy.info.context_length,
            seed=derive(cfg.train.seed, step),
        )
        learned = learn(policy, batch.samples, cfg, step, interrupted=lambda: False)
        rate = np.mean([group.pass_rate for group in sampled.groups])
        loss = learned.update.loss if learned.update else float("nan")
        print(f"step {step + 1:2}  success {rate:.3f}  learned from {len(batch.samples):2}  loss {loss:.4f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A task of one's own on the embedded model.")
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
