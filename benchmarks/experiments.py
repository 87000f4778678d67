"""The experiments of `make results` on the embedded model: every learning figure in README and docs."""

from __future__ import annotations

from dataclasses import dataclass

TINY = ("model.name=tiny", "task.name=tiny", "train.eval_every=2", "train.patience=0", "log.samples=0")
LONG = (*TINY, "rollout.problems_per_step=2", "train.steps=300", "train.eval_every=25", "train.probe=false")
GRPO = "objective.kind=grpo"
AUTO = "objective.kind=auto"
GRPO_RATE = "train.learning_rate=5e-3"  # the best of the sweep below
FEEDBACK_ONLY = "teacher.demonstration=off"
SUPPORT = {"sampled": "objective.support=sampled", "sequence": "objective.support=sequence"}


@dataclass(frozen=True)
class Experiment:
    """One row of the results: settings on top of the preset `tiny`, seeds, and whether contexts are swapped."""

    section: str
    label: str
    settings: tuple[str, ...]
    seeds: int
    swapped: bool = False


def _main() -> list[Experiment]:
    longer = ("train.steps=24",)
    rows = [
        ("SDPO, default contexts", (), False),
        ("SDPO, feedback alone", (FEEDBACK_ONLY, *longer), False),
        ("SDPO, feedback without suggestions", ("task.feedback=no_suggestion", *longer), False),
        ("GRPO, best learning rate", (GRPO, GRPO_RATE, *longer), False),
        ("SDPO, contexts of other problems", (), True),
        ("SDPO, learning rate 0", ("train.learning_rate=0.0", "train.steps=3"), False),
    ]
    return [Experiment("main", label, (*TINY, *extra), 5, swapped) for label, extra, swapped in rows]


def _versus() -> list[Experiment]:
    pair = ("rollout.group_size=2", "train.steps=64", "train.eval_every=4")
    mid = ("task.name=tiny:mid", "train.steps=30", "train.eval_every=3")
    both = [
        ("groups of 2: SDPO", pair),
        ("groups of 2: GRPO", (*pair, GRPO, GRPO_RATE)),
        ("tiny:mid: SDPO", mid),
        ("tiny:mid: GRPO", (*mid, GRPO, GRPO_RATE)),
    ]
    return [Experiment("versus", label, (*TINY, *extra), 3) for label, extra in both]


def _sweep() -> list[Experiment]:
    rates = ("2e-3", "5e-3", "1e-2")
    return [
        Experiment(
            "sweep",
            f"GRPO at {rate}",
            (*TINY, GRPO, f"train.learning_rate={rate}", "train.steps=24", "train.eval_every=4"),
            2,
        )
        for rate in rates
    ]


def _ablations() -> list[Experiment]:
    rows = [
        ("full vocabulary, alpha 0.5, ema, rank 8 (the preset)", ()),
        ("top-20 with tail", ("objective.support=top_k", "objective.top_k=20")),
        ("sampled token, alpha 1", ("objective.alpha=1.0", SUPPORT["sampled"])),
        ("sequence, alpha 1", ("objective.alpha=1.0", SUPPORT["sequence"])),
        ("alpha 0", ("objective.alpha=0.0",)),
        ("alpha 1", ("objective.alpha=1.0",)),
        ("teacher frozen", ("teacher.kind=frozen",)),
        ("teacher live", ("teacher.kind=live",)),
        ("teacher trust region", ("teacher.kind=trust_region",)),
        ("rank 4", ("model.adapter.rank=4",)),
        ("rank 16", ("model.adapter.rank=16",)),
    ]
    return [Experiment("ablation", label, (*TINY, "train.eval_every=5", *extra), 3) for label, extra in rows]


def _beyond() -> list[Experiment]:
    rows = [
        ("hybrid, lambda 0.5", ("objective.kind=hybrid",)),
        ("question weight by pass rate", ("objective.question_weight=pass_rate",)),
        ("routed by success", ("objective.route=by_success",)),
    ]
    return [Experiment("beyond", label, (*TINY, "train.eval_every=5", *extra), 3) for label, extra in rows]


def _automatic() -> list[Experiment]:
    longer = (*TINY, AUTO, "train.steps=24")
    rows = [("auto, contexts of other problems", 3, True), ("auto, default contexts", 1, False)]
    return [Experiment("auto", label, longer, seeds, swapped) for label, seeds, swapped in rows]


def _long() -> list[Experiment]:
    rows = [
        ("the default", (), 5),
        ("a warning instead of a rollback", ("train.on_decline=warn",), 3),
        ("the paper's: teacher rate 0.05, constant rate", ("teacher.update_rate=0.05", "train.schedule=constant"), 3),
    ]
    return [Experiment("long", f"SDPO, {label}", (*LONG, *settings), seeds) for label, settings, seeds in rows]


def _game() -> list[Experiment]:
    base = (*TINY, "task.name=game:library", "train.steps=6", "train.eval_every=2")
    rows = [
        ("two turns: SDPO", ()),
        ("one turn: SDPO", ("task.max_turns=1",)),
        ("two turns: learning rate 0", ("train.learning_rate=0.0", "train.steps=1")),
    ]
    return [Experiment("game", label, (*base, *extra), 3) for label, extra in rows]


def _torch() -> list[Experiment]:
    backends = (("on MLX", ()), ("on PyTorch", ("model.backend=torch", "model.device=cpu")))
    return [Experiment("torch", f"SDPO {where}", (*TINY, *extra), 5) for where, extra in backends]


EXPERIMENTS = (
    *_main(),
    *_versus(),
    *_sweep(),
    *_ablations(),
    *_beyond(),
    *_automatic(),
    *_long(),
    *_game(),
    *_torch(),
)
