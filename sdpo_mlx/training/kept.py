"""What `sdpo solve --keep` leaves: a folder as a run's, so that every command that takes a run takes it too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.rl.components import Components, versions
from sdpo_mlx.runs.events import EventLog
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training.model_card import Base, CardFacts, model_card, searched
from sdpo_mlx.training.test_time import Search
from sdpo_mlx.types import Problem

UNSCORED = "None: it was made for one problem. In the whole folder `sdpo eval .` measures it on others of that task."


def check_place(folder: Path) -> None:
    """Raises ConfigError where another run would be overwritten or no folder can be, before anything is searched."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError("a file stands here", where=str(folder), fix="choose another --keep")
    if (folder / "checkpoints").exists():
        raise ConfigError("a run lies here", where=str(folder), fix="choose another --keep")


def keep(setup: Components, folder: Path, problem: Problem, search: Search, command: Sequence[str]) -> None:
    """Save the student with its settings, manifest, events and card; an earlier search kept there is replaced.

    `step` counts batches of attempts.
    """
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run, size = RunFolder(folder), setup.cfg.rollout.group_size
    run.save_adapter(setup.policy.state()["student"], setup.policy.adapter_config())
    run.write_config(setup.requested)
    run.write_manifest({**setup.manifest(list(command)), "problem": problem.id, "solved": search.solved})
    base, story = Base.of(setup.model), searched(setup.cfg, problem.id, search.attempts, search.solved)
    facts = CardFacts(folder.resolve().name, base, story, unscored=UNSCORED, versions=versions())
    run.write_card(model_card(facts, setup.requested))
    run.events.unlink(missing_ok=True)
    log, batches = EventLog(run.events), -(-search.attempts // size)
    config = setup.requested.model_dump(mode="json")
    try:
        log.emit(
            {"type": "run_started", "step": 0, "config": {**config, "train": {**config["train"], "steps": batches}}}
        )
        solved = 1.0 if search.solved else 0.0
        log.emit({"type": "step", "step": batches, "generations/total": search.attempts, "groups/solved": solved})
        log.emit({"type": "run_finished", "step": batches})
    finally:
        log.close()
