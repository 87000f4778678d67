"""What `sdpo train` prints at the end fits the outcome."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sdpo_cli.commands import train

from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.evaluation.compare import compare_rewards
from sdpo_mlx.evaluation.forgetting import Forgetting, TextScore
from sdpo_mlx.training.final_scores import FinalScore, TrainingResult
from sdpo_mlx.training.session import TrainState

CONFIG = resolve(None, [], {"model.name": "tiny", "task.name": "tiny", "train.steps": 6}).config
PROBLEM = SimpleNamespace(messages=({"role": "user", "content": "Write f(x)"},))
COMPONENTS: Any = SimpleNamespace(
    cfg=CONFIG,
    model=SimpleNamespace(source="embedded", path="tiny"),
    task=SimpleNamespace(problems=lambda _split: [PROBLEM]),
)


def score(reward: float, success: float) -> FinalScore:
    rewards = {f"p{n}": [reward] * 2 for n in range(12)}
    return FinalScore.of({"rewards": rewards, "score": reward, "low": 0.1, "high": 0.9, "pass@1": success})


def lines(before: FinalScore, after: FinalScore, *, best: int = 6, truncated: float = 0.0, stale: int = 0) -> str:
    state = TrainState(step=6 - stale, generations=1536, best_step=best, stale=stale)
    comparison = compare_rewards(before.rewards, after.rewards, seed=0)
    forgot = Forgetting(0.0, 0.0, None, TextScore(1.0, 1.0))
    result = TrainingResult(state, before, after, comparison, forgot, truncated=truncated)
    return "\n".join(train.summary(COMPONENTS, Path("runs/x"), result, 61.0))


def test_summary_says_whether_a_gain_can_be_believed_and_what_to_do_with_it() -> None:
    shown = lines(score(0.25, 0.25), score(0.5, 0.5))
    assert "held-out  success before 25.0 %" in shown
    assert "The difference is significant" in shown
    assert "sdpo chat runs/x --compare" in shown
    assert "truncated" not in shown


def test_summary_of_a_run_that_learned_nothing_shows_how_to_find_out_why() -> None:
    shown = lines(score(0.0, 0.0), score(0.0, 0.0), best=0)
    assert "the adapter changes nothing" in shown
    assert "sdpo rollout --run runs/x" in shown
    assert "sdpo probe -c runs/x" in shown
    assert "chat" not in shown
    assert f"--max-tokens {2 * CONFIG.rollout.max_tokens}" in lines(
        score(0.0, 0.0), score(0.0, 0.0), best=0, truncated=0.4
    )


def test_summary_names_mean_rewards_and_the_end_by_patience() -> None:
    shown = lines(score(0.25, 0.0), score(0.5, 0.125), best=3, stale=2)
    assert "mean reward before 25.0 %" in shown
    assert "success before 0.0 %   after 12.5 %" in shown
    assert "after step 4 of 6: no better held-out score in 2 evaluations (train.patience)" in shown


@pytest.mark.parametrize(("step", "more"), [(6, "--steps 12"), (4, "--train.patience 0")])
def test_a_finished_run_says_how_to_continue(step: int, more: str) -> None:
    assert f"sdpo train --out runs/x --resume {more}" in train.already_finished(Path("runs/x"), step, CONFIG)
