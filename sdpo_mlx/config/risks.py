"""Settings with which others, or we, have seen runs fail: one line of warning each, with the fix."""

from __future__ import annotations

from sdpo_mlx.config.schema import Config

LONG = 200  # steps; the authors' tool-use run fell after 400 (lasgroup/SDPO 25), ours on the embedded task within 300
FULL_RATE = 1e-5  # the highest rate at which the paper trains all weights


def warnings(cfg: Config) -> tuple[str, ...]:
    """Return the warnings of a training run with this configuration (docs/settings.md, "What others saw fail")."""
    distils = cfg.objective.kind != "grpo"
    found = []
    if distils and cfg.task.name.partition(":")[0] == "math" and (cfg.model.thinking or cfg.objective.kind == "sdpo"):
        seen = (
            "mathematics with objective.kind=sdpo: held-out scores fell while training rewards rose (lasgroup/SDPO 26)"
        )
        if cfg.model.thinking:
            seen = "mathematics with thinking: self-distillation lost up to 40 % on new problems (arXiv 2603.24472)"
        found.append(f"{seen}. Compare with objective.kind=grpo, and score problems of another source")
    unguarded = not cfg.train.eval_every or cfg.train.on_decline == "warn"
    if distils and cfg.train.steps >= LONG and unguarded:
        found.append(
            f"{cfg.train.steps} steps without a way back: long SDPO runs have fallen to 0 after 150 to 500 steps. "
            "Set train.eval_every=10 and train.on_decline=rollback"
        )
    if cfg.model.adapter.kind == "full" and cfg.train.learning_rate > FULL_RATE:
        found.append(
            f"all weights at learning rate {cfg.train.learning_rate:g}: the paper has 1e-6 to 1e-5 for them; a "
            "higher rate forgets more. Set train.learning_rate=1e-5"
        )
    return tuple(found)
